"""How many connections a server takes: of the files that it may have open, some are left for its work."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from federation import Federation
from signed import Signed, sign_federation

import secagg
from secagg.integrations.grpc import Server, SiteSession

CONFIG = {
    "he": {"preset": "smallest"},
    "aggregation": {"min_clients": 2, "max_clients": 4, "max_abs": 1.0, "max_weight": 1.0},
}
FILES = 256


@pytest.fixture
def signed() -> Signed:
    config = secagg.Config.from_dict(CONFIG)
    return sign_federation(Federation(config, secagg.generate_keys(config)))


@pytest.fixture
def few_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_strangers_get_half_of_the_files(few_files: None, signed: Signed, tmp_path: Path) -> None:
    """The server closes what is too much; the other end of a connection is a file of this process, too."""
    with Server(signed.config, signed.federation.keys.server, tmp_path / "run", insecure=True) as server:
        host, port = server.address.rsplit(":", 1)
        with SiteSession(server.address, "site-1", tls=None, timeout=120.0) as session, ExitStack() as strangers:
            session.join()
            resource.setrlimit(resource.RLIMIT_NOFILE, (4 * FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
            # All at once: a stranger who says nothing is sent away after five seconds, and makes room for another.
            there = [
                strangers.enter_context(socket.create_connection((host, int(port)), timeout=120.0))
                for _ in range(FILES)
            ]
            closed = 0
            for stranger in there:
                try:
                    closed += not stranger.recv(1)
                except ConnectionError:
                    closed += 1
            assert closed >= FILES // 2
