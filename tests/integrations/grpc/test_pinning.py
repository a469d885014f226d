"""A site sends nothing to a server whose certificate is not the one in the manifest, were it of the same authority."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from running import SMALL, certify, make_signed, serving
from signed import Signed

from secagg.errors import IdentityError, TransportError
from secagg.integrations.grpc import SiteSession
from secagg.integrations.grpc.credentials import server_credentials
from secagg.protocol.handshake import check_handshake
from secagg.trust import Authority, Tls

REFUSED = r"shows the certificate [0-9a-f]{16}…, project project names [0-9a-f]{16}… \(serial 1\)"


@dataclass(frozen=True)
class Place:
    authority: Authority
    signed: Signed
    tls: dict[str, Tls]

    def session(self, address: str, timeout: float = 120.0, **changes: Any) -> SiteSession:
        options = {"tls": self.tls["site-1"], "project": self.signed.project, "timeout": timeout} | changes
        return SiteSession(address, "site-1", **options)

    def calls(self, session: SiteSession, tmp_path: Path) -> dict[str, Callable[[], object]]:
        """Whatever sends something."""
        update = self.signed.site().encrypt(SMALL)
        return {
            "join": session.join,
            "status": session.status,
            "upload": lambda: session.upload(update),
            "skip": lambda: session.skip(0),
            "download": lambda: session.download(0, tmp_path / "aggregate"),
            "load_model": lambda: session.load_model(tmp_path / "model"),
        }


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    authority = Authority.create(tmp_path_factory.mktemp("authority"))
    signed, tls = certify(make_signed(), authority)
    return Place(authority, signed, tls)


class Counted(grpc.GenericRpcHandler):
    """Takes any call, and answers none."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def service(self, details: grpc.HandlerCallDetails) -> None:
        self.calls.append(details.method)


@contextlib.contextmanager
def impostor(tls: Tls, address: str = "127.0.0.1:0") -> Iterator[tuple[str, list[str]]]:
    """A server with some certificate; its address, and the calls that it gets."""
    handler = Counted()
    server = grpc.server(ThreadPoolExecutor(2), handlers=[handler], options=[("grpc.so_reuseport", 0)])
    port = server.add_secure_port(address, server_credentials(tls))
    server.start()
    try:
        yield f"127.0.0.1:{port}", handler.calls
    finally:
        server.stop(None).wait()


def test_another_certificate_of_the_same_authority(place: Place, tmp_path: Path) -> None:
    """One from before a rotation, or issued by mistake, for the same name and hosts."""
    with impostor(place.authority.issue_server(folder=tmp_path / "other")) as (address, calls):
        with place.session(address) as session:
            for call in place.calls(session, tmp_path).values():
                with pytest.raises(IdentityError, match=REFUSED):
                    call()
        assert calls == []
        with place.session(address, project=None) as session, pytest.raises(TransportError, match="UNIMPLEMENTED"):
            session.status()
        assert calls == ["/secagg.v1.SecureAggregation/Status"]  # without a manifest, the authority's word counts


def test_the_server_comes_back_and_an_impostor_in_its_place(place: Place, tmp_path: Path) -> None:
    """Every connection of a session is held to it, not the first one only."""
    with serving(place.signed, tmp_path / "run", place.tls) as running:
        address = running.server.address
        session = place.session(address)
        session.join()
    with session:
        with serving(place.signed, tmp_path / "run", place.tls, address=address):
            assert session.status().round == 0
            assert not session.upload(place.signed.site().encrypt(SMALL)).already_added
        with impostor(place.authority.issue_server(folder=tmp_path / "other"), address) as (_, calls):
            for call in place.calls(session, tmp_path).values():
                with pytest.raises(IdentityError, match=REFUSED):
                    call()
            assert calls == []
        with serving(place.signed, tmp_path / "run", place.tls, address=address):
            assert session.status().added == ("site-1",)


def test_a_server_that_is_away_is_no_impostor(place: Place) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        check_handshake(address, place.tls["site-1"], place.signed.project)
        match = r"joining failed: .* \((UNAVAILABLE|DEADLINE_EXCEEDED)\)"
        with place.session(address, timeout=0.5) as session, pytest.raises(TransportError, match=match) as caught:
            session.join()
    assert type(caught.value) is TransportError


def test_a_manifest_without_the_certificate(place: Place) -> None:
    """Nothing to hold a server against: it fails before there is a connection."""
    project, tls = replace(place.signed.project, server_certificate=None), place.tls["site-1"]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        for connect in (
            lambda: place.session(address, project=project),
            lambda: check_handshake(address, tls, project),
        ):
            with pytest.raises(IdentityError, match=r"no certificate of the server.*anew by `secagg rotate`"):
                connect()
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_what_else_is_refused_is_explained_as_ever(place: Place, tmp_path: Path) -> None:
    stranger = Authority.create(tmp_path / "stranger")
    with serving(place.signed, tmp_path / "run", place.tls) as running:
        foreign = stranger.issue_site("site-1")
        half = Tls(place.tls["site-1"].ca, foreign.cert, foreign.key)
        with (
            place.session(running.server.address, tls=half) as session,
            pytest.raises(IdentityError, match="refuses the certificate"),
        ):
            session.join()
    with impostor(stranger.issue_server()) as (address, calls), place.session(address) as session:
        with pytest.raises(IdentityError, match="is refused: .*it is of another project"):
            session.join()
        assert calls == []
    with (
        serving(place.signed, tmp_path / "run-2", place.tls, address="127.0.0.2:0") as running,
        place.session(running.server.address) as session,
        pytest.raises(IdentityError, match="is refused: IP address mismatch"),
    ):
        session.join()
