"""The gRPC server under many sites: throughput and memory, beside a server that only stores what it is sent; rounds of
sites that are threads of one process, beside sites that have a process each."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import numpy as np
import psutil
import pytest

import secagg
from secagg.integrations.grpc import SiteSession
from secagg.integrations.grpc import secagg_pb2 as pb
from secagg.integrations.grpc import secagg_pb2_grpc as pb_grpc
from secagg.integrations.grpc.credentials import channel_credentials
from secagg.trust import Authority, Certificate, Tls
from secagg.trust.project import Party

SERVERS = Path(__file__).parent / "support" / "upload_servers.py"
SITES = Path(__file__).parent / "support" / "round_sites.py"
SENDERS = 8
TURNS = 3


@dataclass
class Federation:
    """Kits and updates of many sites, in a folder."""

    folder: Path
    sites: tuple[str, ...]

    def update(self, site: str) -> Path:
        return self.folder / f"{site}.update"

    @property
    def nbytes(self) -> int:
        return sum(self.update(site).stat().st_size for site in self.sites)


@dataclass
class Side:
    """Seconds of all uploads, the server's CPU time in them, and what its memory did meanwhile."""

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    growth: list[float] = field(default_factory=list)  # resident bytes above start, at the peak
    late: list[float] = field(default_factory=list)  # of the second half of the sites above the first


def make_federation(folder: Path, config: secagg.Config, states: Any, count: int) -> Federation:
    """Make kits, and of each site the update of what `states` returns for its number, unless that is None."""
    keys = secagg.generate_keys(config)
    authority, signer = Authority.create(folder), secagg.Identity.generate()
    sites = tuple(f"site-{number:03}" for number in range(count))
    members = []
    for name in ("server", *sites):
        tls = authority.issue_server() if name == "server" else authority.issue_site(name)
        identity = secagg.Identity.generate()
        identity.save(folder / name / "signing.key")
        members.append(Party(name, identity.public, Certificate.load(tls).fingerprint))
    now = int(time.time())
    key = keys.client.fingerprint
    certificate = Certificate.load(Tls.load(folder / "server")).der
    parties = members[0], tuple(members[1:])
    project = secagg.Project(
        "bench", 0, now, now + 86_400, config, 0, key, signer.public, *parties, server_certificate=certificate
    )
    project.save(folder / "project.secagg", signer)
    keys.server.save(folder / "server.key")
    keys.client.save(folder / "client.key")
    made = Federation(folder, sites)
    for number, site in enumerate(sites if states is not None else ()):
        identity = secagg.Identity.load(folder / site / "signing.key")
        client = secagg.Client(config, keys.client, site, identity=identity, project=project)
        client.encrypt_to(made.update(site), states(number))
    return made


@contextmanager
def running(kind: str, federation: Federation, run: str = "run") -> Iterator[tuple[str, psutil.Process]]:
    shutil.rmtree(federation.folder / run, ignore_errors=True)
    command = [sys.executable, str(SERVERS), kind, str(federation.folder), str(federation.folder / run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            assert address, "the server did not start"
            yield address, psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait()


def send_plain(address: str, federation: Federation, site: str) -> None:
    credentials = channel_credentials(Tls.load(federation.folder / site))
    with (
        secagg.Update.open(federation.update(site)) as update,
        grpc.secure_channel(address, credentials) as channel,
    ):
        stub = pb_grpc.SecureAggregationStub(channel)
        stub.Upload(pb.Chunk(data=bytes(chunk)) for chunk in update.chunks())


def send_secagg(address: str, federation: Federation, site: str) -> None:
    with SiteSession(address, site, tls=Tls.load(federation.folder / site)) as session:
        session.upload(federation.update(site))


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def turn(kind: str, federation: Federation, side: Side) -> None:
    """All sites upload, `SENDERS` at a time, over a connection of their own each."""
    send = send_plain if kind == "plain" else send_secagg
    with running(kind, federation) as (address, process), ThreadPoolExecutor(SENDERS) as pool:
        resident, begun = [process.memory_info().rss], cpu_seconds(process)

        def one(site: str) -> None:
            send(address, federation, site)
            resident.append(process.memory_info().rss)

        start = time.perf_counter()
        list(pool.map(one, federation.sites))
        side.seconds.append(time.perf_counter() - start)
        side.cpu.append(cpu_seconds(process) - begun)
        if kind == "secagg":
            with SiteSession(address, "site-000", tls=Tls.load(federation.folder / "site-000")) as session:
                assert session.status().round == 1, "every update is in the aggregate of round 0"
    half = len(resident) // 2
    side.growth.append(max(resident) - resident[0])
    side.late.append(max(resident[half:]) - max(resident[:half]))


@pytest.mark.parametrize(("name", "count"), [("segresnet", 30), ("million", 200)])
def test_uploads(name, count, benchmark, message, report, progress, configure, model, tmp_path_factory):
    config = configure("flashe-16", min_clients=count, max_clients=count)
    million = {"weight": np.random.default_rng(0).uniform(-1, 1, 1_000_000).astype(np.float32)}
    folder = tmp_path_factory.mktemp(name)
    progress(f"make {count} updates")
    federation = make_federation(folder, config, lambda number: model if name == "segresnet" else million, count)
    sides = {"secagg": Side(), "plain": Side()}

    def turns() -> None:
        for number in range(TURNS):
            for kind, side in sides.items():
                progress(f"{number + 1}/{TURNS} {kind}")
                turn(kind, federation, side)

    benchmark.pedantic(turns)
    ours, plain = sides["secagg"], sides["plain"]
    ratio = median(b / a for a, b in zip(ours.seconds, plain.seconds, strict=True))
    speeds = [federation.nbytes / median(side.seconds) / 1e6 for side in (ours, plain)]
    message(federation.nbytes // count, peak=max(ours.growth))
    benchmark.extra_info.update(ratio=ratio, secagg=vars(ours), plain=vars(plain))
    busy = "{:.1f} of {:.1f} ms".format(*(1e3 * median(side.cpu) / count for side in (ours, plain)))
    detail = f"{speeds[0]:.0f} of {speeds[1]:.0f} MB/s, {count} sites; the server's CPU, an upload: {busy}"
    report.measure(f"throughput-{name}", ratio, detail)
    detail = f"peak {max(ours.growth) / 1e6:.1f} MB above start, plain {max(plain.growth) / 1e6:.1f} MB"
    report.measure(f"server-memory-{name}", max(ours.late) / (federation.nbytes / 2), detail)
    shutil.rmtree(folder)


class Sites:
    """Processes with so many threads each, of which every one is a site; a context manager."""

    def __init__(self, address: str, federation: Federation, security: str, threads: int) -> None:
        names = federation.sites
        self._command = [sys.executable, str(SITES), address, str(federation.folder), security]
        self._parts = [names[first : first + threads] for first in range(0, len(names), threads)]
        self._processes: list[subprocess.Popen[str]] = []
        self._running = ExitStack()

    def __enter__(self) -> Sites:
        for names in self._parts:
            command = [*self._command, *names]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            self._processes.append(self._running.enter_context(process))
            self._running.callback(process.kill)
        assert self._answers() == {"joined"}
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def run_round(self) -> None:
        for process in self._processes:
            process.stdin.write("round\n")
            process.stdin.flush()
        assert self._answers() == {"done"}

    def base(self) -> str:
        """End; return what the next round would begin from, at all sites."""
        for process in self._processes:
            process.stdin.close()
        (base,) = self._answers()
        return base

    def _answers(self) -> set[str]:
        return {process.stdout.readline().strip() for process in self._processes}


@pytest.mark.parametrize("security", ["tls", "insecure"])
def test_sites_as_threads(security, compare, report, progress, configure, tmp_path):
    count = 20
    config = configure("flashe-16", min_clients=count, max_clients=count)
    federation = make_federation(tmp_path, config, None, count)
    kind = "secagg" if security == "tls" else "insecure"
    with ExitStack() as stack:
        sides = []
        for name, threads in (("threads", count), ("processes", 1)):
            progress(f"start {count} sites as {name}")
            address, _ = stack.enter_context(running(kind, federation, name))
            sides.append(stack.enter_context(Sites(address, federation, security, threads)))
        together, apart = sides
        comparison = compare(together.run_round, apart.run_round, rounds=10)
        for side in sides:
            assert len(side.base()) == 64, "all sites have the same global model"
    detail, _, _ = comparison.detail.partition(", CPU")  # which is not that of this process
    report.measure(f"threads-{security}", comparison.ratio, detail)
