"""A federation of three sites, its server as a child process, and a hard timeout for every test of this folder."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import grpc
import numpy as np
import pytest

import secagg
from secagg.errors import TransportError
from secagg.integrations.grpc import SiteSession
from secagg.integrations.grpc import secagg_pb2 as pb
from secagg.integrations.grpc.refusals import details, error_of
from secagg.scheme.codec import RealCodec
from secagg.trust import Authority, Tls

HERE = Path(__file__).parent
#: Far beyond what any test takes on a slow machine: it ends what hangs.
HARD_TIMEOUT_SECONDS = 300
#: For what must not run into it.
LONG_SECONDS = 120.0
SITES = ("site-1", "site-2", "site-3")
WEIGHTS = {"site-1": 1.0, "site-2": 2.0, "site-3": 5.0}
MAX_WEIGHT = 10.0
CONFIG = {
    "he": {
        "lib": "tenseal",
        "config": {
            "poly_modulus_degree": 8192,
            "coeff_mod_bit_sizes": [60, 40, 40],
            "scale_bits": 40,
            "scheme": "CKKS",
        },
    },
    "encrypt": "all",
    "aggregation": {"min_clients": 2, "max_clients": 4, "max_abs": 8.0, "max_weight": MAX_WEIGHT},
}

State = Mapping[str, np.ndarray[Any, Any]]


@pytest.fixture(autouse=True)
def hard_timeout() -> Iterator[None]:
    """A test that hangs fails, and says where."""

    def hung(number: int, frame: FrameType | None) -> None:
        faulthandler.dump_traceback()
        raise TimeoutError(f"the test took over {HARD_TIMEOUT_SECONDS} s")

    earlier = signal.signal(signal.SIGALRM, hung)
    signal.alarm(HARD_TIMEOUT_SECONDS)
    # For a hang outside Python, where no signal handler runs: ends the whole run.
    faulthandler.dump_traceback_later(2 * HARD_TIMEOUT_SECONDS, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, earlier)


@dataclass
class Provision:
    """Config, keys, certificates and sites of one federation, as `secagg keygen` would hand them out."""

    folder: Path
    config: secagg.Config
    keys: secagg.KeyPair
    clients: dict[str, secagg.Client]
    states: dict[str, State]
    server_tls: Tls
    tls: dict[str, Tls]

    def update(self, site: str, round: int = 0) -> secagg.Update:
        return self.clients[site].encrypt(self.states[site], weight=WEIGHTS[site], round=round)

    def assert_mean(self, aggregate: secagg.Update, sites: Iterable[str] = SITES) -> None:
        """Hold the decrypted aggregate against the weighted mean of the sites' states."""
        sites = sorted(sites)
        assert sorted(aggregate.header.sites) == sites
        like = self.states[sites[0]]
        mean = self.clients[sites[0]].decrypt(aggregate, like=like)
        assert mean.keys() == like.keys()
        codec = RealCodec(self.config.params, self.config.aggregation)
        total = sum(WEIGHTS[site] for site in sites)
        tolerance = codec.mean_error(len(sites), total / MAX_WEIGHT)
        for name, own in like.items():
            if own.dtype.kind != "f":
                np.testing.assert_array_equal(mean[name], own)
                continue
            exact = sum(WEIGHTS[site] * self.states[site][name].astype(np.float64) for site in sites) / total
            rounding = np.abs(exact) * np.finfo(own.dtype).eps
            assert mean[name].dtype == own.dtype
            assert mean[name].shape == own.shape
            assert np.all(np.abs(mean[name] - exact) <= tolerance + rounding)


@pytest.fixture(scope="session")
def provision(tmp_path_factory: pytest.TempPathFactory) -> Provision:
    folder = tmp_path_factory.mktemp("federation")
    config = secagg.Config.from_dict(CONFIG)
    (folder / "federation.json").write_text(json.dumps(CONFIG))
    keys = secagg.generate_keys(config)
    keys.server.save(folder / "server.key")
    random = np.random.default_rng(7)
    states = {
        site: {
            "conv.weight": random.uniform(-1, 1, (16, 8, 3, 3, 3)).astype(np.float32),
            "fc.weight": random.uniform(-8, 8, (200, 300)).astype(np.float32),
            "fc.bias": random.uniform(-1, 1, 200),
            "steps": np.array(17),
        }
        for site in SITES
    }
    authority = Authority.create(folder)
    return Provision(
        folder=folder,
        config=config,
        keys=keys,
        clients={site: secagg.Client(config, keys.client, name=site) for site in SITES},
        states=states,
        server_tls=authority.issue_server(),
        tls={site: authority.issue_site(site) for site in SITES},
    )


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
