"""A federation of three sites, its server as a child process, and a hard timeout for every test of this folder."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from hanging import watched
from three_sites import Provision, provision

import secagg
from secagg.errors import TransportError
from secagg.integrations.grpc import SiteSession
from secagg.integrations.grpc import secagg_pb2 as pb
from secagg.integrations.grpc.refusals import details, error_of
from secagg.trust import Tls

HERE = Path(__file__).parent
#: For what must not run into the hard timeout.
LONG_SECONDS = 120.0

__all__ = ["provision"]


@pytest.fixture(autouse=True)
def hard_timeout() -> Iterator[None]:
    with watched():
        yield


@dataclass
class ServerProcess:
    """A server in a process of its own. `log` is what it wrote to stderr."""

    provision: Provision
    folder: Path
    address: str = "127.0.0.1:0"
    insecure: bool = False
    round_timeout: float = 600.0
    process: subprocess.Popen[str] = field(init=False)

    def start(self) -> None:
        arguments = {
            "config": str(self.provision.folder / "federation.json"),
            "key": str(self.provision.folder / "server.key"),
            "folder": str(self.folder / "run"),
            "address": self.address,
            "tls": None if self.insecure else str(self.provision.server_tls.key.parent),
            "round_timeout": self.round_timeout,
        }
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "error", str(HERE / "serve.py"), json.dumps(arguments)],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        assert self.address, self.log

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    @property
    def spool(self) -> list[Path]:
        return list((self.folder / "run" / "spool").iterdir())

    @property
    def rounds(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "run" / "rounds.jsonl").read_text().splitlines()]

    def stop(self) -> list[str]:
        """Stop it gracefully; return the HE libraries that it had loaded."""
        self.process.send_signal(signal.SIGTERM)
        output, _ = self.process.communicate(timeout=LONG_SECONDS)
        assert self.process.returncode == 0, self.log
        libraries = json.loads(output)
        assert isinstance(libraries, list)
        return libraries

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def session(
        self, site: str, *, timeout: float = LONG_SECONDS, tls: Tls | None = None, name: str | None = None
    ) -> SiteSession:
        own = None if self.insecure else tls or self.provision.tls[site]
        return SiteSession(self.address, name or site, tls=own, timeout=timeout)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return once `condition` holds, while the server lives; the test's hard timeout bounds it."""
        while not condition():
            assert self.process.poll() is None, self.log
            time.sleep(0.02)

    def join(self, *sites: str) -> None:
        for site in sites:
            with self.session(site) as session:
                session.join()

    def exchange(self, site: str, update: secagg.Update) -> Future[secagg.Update]:
        """Upload and wait for the aggregate, in a thread."""

        def run() -> secagg.Update:
            with self.session(site) as session:
                return session.exchange(update, self.folder / f"{site}.aggregate")

        return _POOL.submit(run)

    def run_round(self, *sites: str, round: int = 0) -> None:
        """Let sites go through a round, and hold the result against the weighted mean."""
        self.join(*sites)
        waiting = [self.exchange(site, self.provision.update(site, round)) for site in sites]
        for future in waiting:
            with future.result() as aggregate:
                assert aggregate.header.round == round
                self.provision.assert_mean(aggregate, sites)

    def send_raw(self, site: str, chunks: Iterable[bytes]) -> bool:
        """Upload chunks as they are, without the client's own checks; raise what the server answers."""
        messages = (pb.Chunk(data=bytes(chunk)) for chunk in chunks)
        with self.session(site) as session:
            try:
                reply = session._link._stub.Upload(messages, timeout=LONG_SECONDS)
            except grpc.RpcError as error:
                raise error_of(error) or TransportError(details(error)) from None
            return not reply.already_added

    @contextlib.contextmanager
    def stalling_site(self, site: str, update: secagg.Update) -> Iterator[None]:
        """A process of `site` that has sent half of `update`; it is killed at the end."""
        path = self.folder / f"{site}.update"
        update.save(path)
        certificates = self.provision.tls[site].key.parent
        process = subprocess.Popen(
            [
                sys.executable,
                "-W",
                "error",
                str(HERE / "stalling_site.py"),
                self.address,
                site,
                str(certificates),
                str(path),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            assert int(process.stdout.readline()) > update.nbytes // 2
            yield
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()


_POOL = ThreadPoolExecutor(8)


@contextlib.contextmanager
def _servers(provision: Provision, folder: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Yield what starts servers. In the end they stop, leave no spool, and have logged no exception."""
    servers: list[tuple[ServerProcess, bool]] = []

    def start(*, log_may_hold_tracebacks: bool = False, **options: Any) -> ServerProcess:
        server = ServerProcess(provision, folder / str(len(servers)), **options)
        server.folder.mkdir()
        server.start()
        servers.append((server, log_may_hold_tracebacks))
        return server

    try:
        yield start
    finally:
        for server, log_may_hold_tracebacks in servers:
            if server.process.poll() is None:
                assert server.stop() == []
            assert server.spool == []
            assert log_may_hold_tracebacks or "Traceback" not in server.log, server.log


@pytest.fixture
def start_server(provision: Provision, tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    with _servers(provision, tmp_path) as start:
        yield start


@pytest.fixture(scope="module")
def start_module_server(
    provision: Provision, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., ServerProcess]]:
    with _servers(provision, tmp_path_factory.mktemp("module")) as start:
        yield start
