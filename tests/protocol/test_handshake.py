"""The certificate of a server that a site does not trust: why, and what to do."""

from __future__ import annotations

import datetime
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from running import make_signed

from secagg.errors import IdentityError
from secagg.protocol.handshake import check_handshake
from secagg.trust import Authority, Certificate, Project, Tls
from secagg.trust import tls as tls_module


@contextmanager
def shaking_hands(tls: Tls, host: str = "127.0.0.1", clients: list[bytes | None] | None = None) -> Iterator[str]:
    """The address of a server that does nothing else; the certificates that its clients send go to `clients`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.cert, tls.key)
    context.load_verify_locations(tls.ca)
    context.verify_mode = ssl.CERT_OPTIONAL
    seen = [] if clients is None else clients
    listener = socket.create_server((host, 0))

    def serve() -> None:
        with suppress(OSError):  # of `accept`: the end
            while True:
                connection, _ = listener.accept()
                with connection, suppress(OSError), context.wrap_socket(connection, server_side=True) as secure:
                    seen.append(secure.getpeercert(binary_form=True))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"{host}:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()


def naming(tls: Tls) -> Project:
    """A manifest in which the server has a certificate."""
    signed, certificate = make_signed(), Certificate.load(tls)
    server = replace(signed.project.server, certificate=certificate.fingerprint)
    return signed.reissue(server=server, server_certificate=certificate.der)


def refusal(address: str, tls: Tls, project: Project | None = None) -> str:
    """Why the server's certificate is refused, and what to do."""
    with pytest.raises(IdentityError, match=f"the certificate of the server at {address} is refused: ") as caught:
        check_handshake(address, tls, project)
    text = str(caught.value).partition(" is refused: ")[2]
    assert not text.endswith(".")
    return text


@pytest.mark.parametrize("pinned", [False, True])
def test_what_to_do_about_a_certificate_of_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pinned: bool
) -> None:
    """Being the one in the manifest helps none of them."""
    authority = Authority.create(tmp_path / "own")
    site, good = authority.issue_site("site-1"), authority.issue_server(["fl.example.org"])
    foreign = Authority.create(tmp_path / "foreign").issue_server()
    project = naming(good) if pinned else None
    with shaking_hands(foreign) as address:
        assert "it is of another project, or a proxy ends TLS: use the kit" in refusal(address, site, project)
    with shaking_hands(good, "127.0.0.2") as address:
        words = refusal(address, site, project)
        assert words.startswith("IP address mismatch")
        assert "use one of the names that the certificate has (localhost, " in words
        assert "fl.example.org" in words
    with shaking_hands(site) as address:
        assert "does `secagg serve` have the server's kit?" in refusal(address, site, project)

    def long_ago(zone: datetime.timezone) -> datetime.datetime:
        return datetime.datetime.now(zone) - timedelta(days=2)

    past = SimpleNamespace(
        datetime=SimpleNamespace(now=long_ago), timedelta=timedelta, timezone=datetime.timezone, UTC=datetime.UTC
    )
    monkeypatch.setattr(tls_module, "datetime", past)
    old = authority.issue_server(days=1, folder=tmp_path / "old")
    with shaking_hands(old) as address:
        words = refusal(address, site, naming(old) if pinned else None)
    assert words == "certificate has expired; `secagg rotate` at the provisioner renews it"


def test_another_certificate_than_the_one_in_the_manifest(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path)
    site, server = authority.issue_site("site-1"), authority.issue_server()
    project = naming(authority.issue_server(folder=tmp_path / "other"))
    shown, named = (Certificate.load(server).fingerprint, project.server.certificate)
    clients: list[bytes | None] = []
    with shaking_hands(server, clients=clients) as address, pytest.raises(IdentityError) as caught:
        check_handshake(address, site, project)
    assert clients == [None]  # not even the site's certificate has been sent
    assert str(caught.value) == (
        f"the server at {address} shows the certificate {shown[:16]}…, project project names {named[:16]}… (serial 1): "
        "one of the two kits is from before a rotation, or it is not this federation's server; unpack the newest kit "
        "at the server, or here"
    )
    with shaking_hands(server, clients=clients) as address, pytest.raises(IdentityError, match="refuses the certif"):
        check_handshake(address, site, naming(server))  # it hangs up, as does one that refuses the site's
    assert clients == [None] + 3 * [Certificate.load(site).der]
