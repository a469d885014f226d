"""Certificates: who is refused at the door."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from secagg.errors import ConfigError, IdentityError, KeyFileError, TransportError
from secagg.integrations.grpc import Server, SiteSession
from secagg.integrations.grpc import secagg_pb2 as pb
from secagg.integrations.grpc import secagg_pb2_grpc as pb_grpc
from secagg.trust import Authority, Tls


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "x" * 65, "sité", "site\n", "*"])
def test_names_of_sites(name: str) -> None:
    with pytest.raises(ConfigError, match="letters"):
        SiteSession("127.0.0.1:1", name, tls=None)


@pytest.mark.parametrize("file", ["ca.crt", "tls.crt", "tls.key"])
def test_a_missing_file_is_named(tmp_path: Path, provision: Any, file: str) -> None:
    tls = Authority.create(tmp_path).issue_site("site-1")
    (tmp_path / "site-1" / file).unlink()
    for use in (
        lambda: Tls.load(tmp_path / "site-1"),
        lambda: SiteSession("127.0.0.1:1", "site-1", tls=tls),
        lambda: Server(provision.config, provision.keys.server, tmp_path / "run", tls=tls),
    ):
        with pytest.raises(KeyFileError, match=f"site-1/{file}"):
            use()
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def server(start_module_server: Callable[..., Any]) -> Any:
    return start_module_server()


def test_a_site_under_the_name_of_another(server: Any, provision: Any) -> None:
    with server.session("site-2", name="site-1") as session:
        with pytest.raises(IdentityError, match="'site-1' joined under the certificate of 'site-2'"):
            session.join()
        with pytest.raises(IdentityError, match="an update of site 'site-1' came under the certificate of 'site-2'"):
            session.upload(provision.update("site-1"))
        status = session.status()
    assert (status.state, status.added, status.waiting_for) == ("idle", (), ())


def test_a_site_of_another_authority(server: Any, provision: Any, tmp_path: Path) -> None:
    stranger = Authority.create(tmp_path).issue_site("site-1")
    with (
        server.session("site-1", tls=stranger) as session,
        pytest.raises(IdentityError, match=r"server at .* is refused"),
    ):
        session.join()
    # One that trusts the server, but is not trusted by it.
    half = Tls(provision.tls["site-1"].ca, stranger.cert, stranger.key)
    with server.session("site-1", tls=half) as session, pytest.raises(IdentityError, match="refuses the certificate"):
        session.join()


def test_the_servers_certificate_is_no_sites(server: Any, provision: Any) -> None:
    session = server.session("site-1", name="server", tls=provision.server_tls)
    with session:
        with pytest.raises(IdentityError, match="under the certificate of 'server'"):
            session.join()
        with pytest.raises(IdentityError, match="under the certificate of 'server'"):
            session.upload(provision.update("site-1"))
        status = session.status()  # its operator may ask
    assert (status.added, status.waiting_for) == ((), ())


@pytest.mark.parametrize("tls", [True, False])
def test_without_a_certificate_of_ones_own(server: Any, provision: Any, tls: bool) -> None:
    trust = grpc.ssl_channel_credentials(provision.tls["site-1"].ca.read_bytes())
    channel = grpc.secure_channel(server.address, trust) if tls else grpc.insecure_channel(server.address)
    with channel:
        stub = pb_grpc.SecureAggregationStub(channel)
        for call, request in ((stub.Join, pb.JoinRequest(site="site-1")), (stub.Status, pb.StatusRequest())):
            with pytest.raises(grpc.RpcError) as caught:
                call(request, timeout=120.0)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    session = SiteSession(server.address, "site-1", tls=None, timeout=1.0)
    with session, pytest.raises(TransportError, match="joining failed"):
        session.join()
    with server.session("site-1") as session:
        assert session.status().waiting_for == ()


def test_a_server_with_a_sites_certificate(
    start_server: Callable[..., Any], provision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provision, "server_tls", provision.tls["site-2"])
    server = start_server()
    with server.session("site-1") as session, pytest.raises(IdentityError, match=r"server at .* is refused"):
        session.join()


def test_nobody_there() -> None:
    session = SiteSession("127.0.0.1:1", "site-1", tls=None, timeout=0.5)
    # The latter on a machine so slow that the connection was not refused yet.
    with session, pytest.raises(TransportError, match=r"joining failed: .* \((UNAVAILABLE|DEADLINE_EXCEEDED)\)"):
        session.join()


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("inf"), float("nan")])
def test_a_timeout_must_be_positive(timeout: float) -> None:
    with pytest.raises(ConfigError, match="timeout"):
        SiteSession("127.0.0.1:1", "site-1", tls=None, timeout=timeout)
