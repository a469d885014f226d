"""Proxies of the environment: gRPC goes through them, and an error on the way must say so."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from secagg.errors import TransportError
from secagg.integrations.grpc import SiteSession
from secagg.integrations.grpc.proxies import proxy_of
from secagg.trust import Authority, Tls

VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy")
#: The same machine, and no address of the loopback to those who ask only for its name.
HERE = "0.0.0.0"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def dead_port() -> Iterator[int]:
    """A port at which nothing listens, and nothing will."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    return Authority.create(tmp_path).issue_site("site-1")


def fail(address: str, tls: Tls | None) -> str:
    with SiteSession(address, "site-1", tls=tls, timeout=1.0) as session, pytest.raises(TransportError) as caught:
        session.status()
    return str(caught.value)


@pytest.mark.parametrize("variable", ["grpc_proxy", "https_proxy", "http_proxy"])
def test_a_dead_proxy_is_named(monkeypatch: pytest.MonkeyPatch, tls: Tls, dead_port: int, variable: str) -> None:
    monkeypatch.setenv(variable, f"http://nurse:s3cret@127.0.0.1:{dead_port}/")
    text = fail(f"{HERE}:1", tls)
    assert f"the way goes through the proxy of {variable}=http://127.0.0.1:{dead_port}: " in text
    assert f"set no_proxy={HERE} to connect without it" in text
    assert "s3cret" not in text
    assert "nurse" not in text
    monkeypatch.setenv("no_proxy", f"example.org,{HERE}")
    assert "proxy" not in fail(f"{HERE}:1", tls)


def test_what_is_added_to_exceptions_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "a.org")
    proxy = proxy_of("fl.example.org:8443")
    assert proxy is not None
    assert proxy.remedy == "add fl.example.org to no_proxy=a.org to connect without it"
    monkeypatch.setenv("no_grpc_proxy", "")  # it counts, being set, and names nothing
    proxy = proxy_of("fl.example.org:8443")
    assert proxy is not None
    assert proxy.remedy == "set no_grpc_proxy=fl.example.org to connect without it"


def test_the_loopback_needs_no_exception(monkeypatch: pytest.MonkeyPatch, dead_port: int) -> None:
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{dead_port}")
    for host in ("localhost", "127.0.0.1", "[::1]"):
        assert "proxy" not in fail(f"{host}:1", None)


@pytest.mark.parametrize(
    ("variables", "through"),
    [
        ({}, False),
        ({"https_proxy": "http://{proxy}"}, True),
        ({"HTTPS_PROXY": "http://{proxy}"}, False),
        ({"https_proxy": "https://{proxy}"}, False),
        ({"https_proxy": "{proxy}"}, False),
        ({"https_proxy": "http://"}, False),
        ({"grpc_proxy": "", "https_proxy": "http://{proxy}"}, False),
        ({"http_proxy": "http://user:password@{proxy}"}, True),
        ({"http_proxy": "http://{proxy}", "no_proxy": "0.0.0.0"}, False),
        ({"http_proxy": "http://{proxy}", "no_proxy": "a.org, .0.0"}, False),
        ({"http_proxy": "http://{proxy}", "no_proxy": "10.0.0.0/8,0.0.0.0/8"}, False),
        ({"http_proxy": "http://{proxy}", "no_proxy": "10.0.0.0/8,0.0.0.1/x"}, True),
        ({"http_proxy": "http://{proxy}", "no_proxy": "*"}, True),
        ({"http_proxy": "http://{proxy}", "no_proxy": ""}, True),
        ({"http_proxy": "http://{proxy}", "NO_PROXY": "0.0.0.0"}, True),
        ({"http_proxy": "http://{proxy}", "no_grpc_proxy": "a.org", "no_proxy": "0.0.0.0"}, True),
    ],
)
def test_what_grpc_does_is_what_is_said(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], through: bool
) -> None:
    """Which of two listeners gRPC comes to."""
    with ExitStack() as stack:
        server, proxy = (stack.enter_context(socket.create_server((HERE, 0))) for _ in range(2))
        for name, value in variables.items():
            monkeypatch.setenv(name, value.format(proxy=f"127.0.0.1:{proxy.getsockname()[1]}"))
        address = f"{HERE}:{server.getsockname()[1]}"
        channel = stack.enter_context(grpc.insecure_channel(address))
        stack.callback(channel.unary_unary("/any/call").future(b"", timeout=60).cancel)
        ready, _, _ = select.select([server, proxy], [], [], 60)
        assert ready == [proxy if through else server]
        assert (proxy_of(address) is not None) == through
