"""The certificate of a server that a site does not trust: why, and what to do."""

from __future__ import annotations

import datetime
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from secagg.errors import IdentityError
from secagg.protocol.handshake import check_handshake
from secagg.trust import Authority, Tls
from secagg.trust import tls as tls_module


@contextmanager
def shaking_hands(tls: Tls, host: str = "127.0.0.1") -> Iterator[str]:
    """The address of a server that does nothing else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.cert, tls.key)
    listener = socket.create_server((host, 0))

    def serve() -> None:
        with suppress(OSError):  # of `accept`: the end
            while True:
                connection, _ = listener.accept()
                with connection, suppress(OSError):
                    context.wrap_socket(connection, server_side=True).close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"{host}:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()


def refusal(address: str, tls: Tls) -> str:
    """Why the server's certificate is refused, and what to do."""
    with pytest.raises(IdentityError, match=f"the certificate of the server at {address} is refused: ") as caught:
        check_handshake(address, tls)
    text = str(caught.value).partition(" is refused: ")[2]
    assert not text.endswith(".")
    return text


def test_what_to_do_about_a_certificate_of_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority.create(tmp_path / "own")
    site, good = authority.issue_site("site-1"), authority.issue_server(["fl.example.org"])
    foreign = Authority.create(tmp_path / "foreign").issue_server()
    with shaking_hands(foreign) as address:
        assert "it is of another project, or a proxy ends TLS: use the kit" in refusal(address, site)
    with shaking_hands(good, "127.0.0.2") as address:
        words = refusal(address, site)
        assert words.startswith("IP address mismatch")
        assert "use one of the names that the certificate has (localhost, " in words
        assert "fl.example.org" in words
    with shaking_hands(site) as address:
        assert "does `secagg serve` have the server's kit?" in refusal(address, site)

    def long_ago(zone: datetime.timezone) -> datetime.datetime:
        return datetime.datetime.now(zone) - timedelta(days=2)

    past = SimpleNamespace(
        datetime=SimpleNamespace(now=long_ago), timedelta=timedelta, timezone=datetime.timezone, UTC=datetime.UTC
    )
    monkeypatch.setattr(tls_module, "datetime", past)
    old = authority.issue_server(days=1, folder=tmp_path / "old")
    with shaking_hands(old) as address:
        assert refusal(address, site) == "certificate has expired; `secagg rotate` at the provisioner renews it"
