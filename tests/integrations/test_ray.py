"""A sum on a Ray cluster of three nodes, each with its own raylet: right, or a typed error, whatever dies."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import cast

import numpy as np
import psutil
import pytest
import ray
import ray_workers
from federation import federate, random_states
from mortal import free_port
from provisioned import Federation
from ray_cluster import RayCluster, kill, running_ray
from s3_server import S3Server
from sharded import kit_of, lay, summed
from signed import ROUND, Signed, sign_federation

import secagg
from secagg import errors
from secagg.integrations import ray as integration
from secagg.integrations.ray import RayPool
from secagg.shards import Pool, RangeDone, Report, SumJob, aggregate
from secagg.storage import objects
from secagg.trust import load_site_kit

FRAMES = 16
#: Two encrypted frames and more in every scheme, and two clear ones.
SHAPES = {"conv.weight": (300, 80, 50), "linear.weight": (700, 200)}


@pytest.fixture(scope="module")
def cluster(s3_session: S3Server) -> Iterator[RayCluster]:
    """With the credentials of the store in the environment of its nodes."""
    with running_ray(**s3_session.environment()) as cluster:
        yield cluster


@cache
def signed(mode: str) -> Signed:
    return sign_federation(federate(mode, encrypt={"include": ["conv*"]}, max_abs=1.0))


@cache
def updates(mode: str, large: bool) -> Sequence[secagg.Update]:
    shapes = {"conv": (FRAMES * 6 * 131072 - 50_000,)} if large else SHAPES
    return signed(mode).encrypt(random_states(3, shapes))


@cache
def expected(mode: str, large: bool) -> bytes:
    return summed(signed(mode), updates(mode, large))


@dataclass
class Round:
    """Updates in a folder, and where their sum is to be."""

    folder: Path
    mode: str = "flashe"
    large: bool = False
    urls: list[str] = field(init=False)
    jobs: list[SumJob] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self.urls = lay(self.updates, self.folder)

    @property
    def updates(self) -> Sequence[secagg.Update]:
        return updates(self.mode, self.large)

    @property
    def target(self) -> Path:
        return self.folder / "sum"

    def add(self, pool: Pool, shards: int | None = 64) -> Report:
        kit = kit_of(signed(self.mode), self.folder)
        began = self.jobs.append
        return aggregate(kit, self.urls, str(self.target), ROUND, pool=pool, shards=shards, began=began)

    def assert_right(self) -> None:
        assert self.target.read_bytes() == expected(self.mode, self.large)
        assert not list(self.folder.glob("sum.*"))


@pytest.mark.parametrize("mode", ["flashe", "seal-BGV"])
def test_is_that_of_an_aggregator_bit_for_bit(mode: str, cluster: RayCluster, tmp_path: Path) -> None:
    round, read = Round(tmp_path, mode), list[int]()
    report = round.add(RayPool(cluster.address, read.append))
    round.assert_right()
    assert (report.left_out, report.passes) == ({}, 1)
    assert round.jobs[0].shards == len(read) > len(cluster.nodes)
    assert sum(read) == sum(update.header.tail_offset for update in round.updates)
    assert not ray.is_initialized()


@pytest.mark.long  # Ray asks the wrong port for 30 s, and gives up the right one on a busy machine
def test_from_elsewhere(cluster: RayCluster, tmp_path: Path) -> None:
    with pytest.raises(errors.TransportError, match="no Ray cluster at ray://"):
        RayPool(f"ray://{cluster.address}")
    round = Round(tmp_path)
    round.add(RayPool(cluster.address))
    round.target.unlink()
    round.add(RayPool(cluster.client))
    round.assert_right()
    assert not ray.is_initialized()


def test_an_unfit_update_is_left_out(cluster: RayCluster, tmp_path: Path) -> None:
    round = Round(tmp_path)
    data = bytearray(Path(round.urls[1]).read_bytes())
    data[len(data) // 2] ^= 1
    Path(round.urls[1]).write_bytes(data)
    report = round.add(RayPool(cluster.address))
    assert (list(report.left_out), report.passes) == ([round.urls[1]], 2)
    assert isinstance(report.left_out[round.urls[1]], errors.DigestError)
    assert round.target.read_bytes() == summed(signed("flashe"), [round.updates[0], round.updates[2]])


def test_from_a_bucket_with_the_credentials_of_the_nodes(
    cluster: RayCluster, s3_session: S3Server, bucket: str, tmp_path: Path
) -> None:
    given, target = updates("flashe", False), f"s3://{bucket}/sum"
    kit = kit_of(signed("flashe"), tmp_path)
    lay(given, f"s3://{bucket}/in")
    report = aggregate(kit, [f"s3://{bucket}/in/*"], target, ROUND, pool=RayPool(cluster.address), shards=64)
    assert report.left_out == {}
    pinned = objects.pin(target)
    assert objects.read(pinned, 0, pinned.nbytes) == expected("flashe", False)
    assert objects.list_objects(f"s3://{bucket}/s*") == [target]


def test_hundreds_of_ranges(cluster: RayCluster, tmp_path: Path) -> None:
    round = Round(tmp_path)

    class Again:
        """Has each range added fifty times."""

        def run(self, job: SumJob, indices: Iterable[int]) -> Iterator[RangeDone]:
            found = list(RayPool(cluster.address).run(job, list(indices) * 50))
            assert len(found) == 50 * job.shards
            yield from {done.index: done for done in found}.values()

    round.add(Again())
    round.assert_right()


@pytest.mark.parametrize(
    ("hook", "kind", "message"),
    [
        ("without_secagg", errors.TransportError, r"pip install 'secagg\[ray\]=="),
        (
            "older",
            errors.BackendUnavailableError,
            r"on node [\w.-]+: secagg is 0\.1\.0; this sum needs pip install 'sec",
        ),
        ("without_s3fs", errors.BackendUnavailableError, r"on node [\w.-]+: objects at s3:// .*'secagg\[s3fs\]'"),
    ],
    ids=["secagg", "version", "s3fs"],
)
def test_a_node_that_lacks_something(
    cluster: RayCluster, bucket: str, hook: str, kind: type[errors.SecAggError], message: str, tmp_path: Path
) -> None:
    lay(updates("flashe", False), f"s3://{bucket}/in")
    kit = kit_of(signed("flashe"), tmp_path)
    with ray_workers.joined(cluster.address, hook):
        with pytest.raises(kind, match=message):
            aggregate(kit, [f"s3://{bucket}/in/*"], f"s3://{bucket}/sum", ROUND, pool=RayPool())
        assert ray.is_initialized()  # whoever has joined leaves
        assert cluster.idle()
    assert objects.list_objects(f"s3://{bucket}/s*") == []


@pytest.fixture
def slow(cluster: RayCluster, tmp_path: Path) -> Iterator[Path]:
    """This process has joined, with workers that read slowly; the folder where they note what they read."""
    with ray_workers.joined(cluster.address, "slow", tmp_path / "reads"):
        yield tmp_path / "reads"


def add_while(round: Round, dies: Callable[[list[int], threading.Event], bool]) -> bool:
    """Add while something dies, in a thread: told of ranges that are added, and when all are; return what it does."""
    done, over = list[int](), threading.Event()
    with ThreadPoolExecutor(1) as executor:
        dying = executor.submit(dies, done, over)
        try:
            round.add(RayPool(read=done.append), FRAMES)
        finally:
            over.set()
    round.assert_right()
    return dying.result()


def elsewhere(cluster: RayCluster) -> dict[int, int]:
    """The processes that run a task, each with its node, but for the first node, which is the driver's own."""
    return {worker: node for worker, node in cluster.busy().items() if node != cluster.nodes[0]}


def at_a_random_moment(round: Round, cluster: RayCluster, rng: random.Random) -> bool:
    """Add while a node dies; return whether it had a task just then."""
    after, seconds = rng.randrange(FRAMES - 4), rng.uniform(0, 0.5)

    def dies(done: list[int], over: threading.Event) -> bool:
        busy = dict[int, int]()
        while len(done) < after or not busy:
            if over.wait(0.02):
                return False
            busy = elsewhere(cluster)
        worker, node = rng.choice(list(busy.items()))
        time.sleep(seconds)
        hit = worker in cluster.busy()
        cluster.kill_node(node)
        return hit

    return add_while(round, dies)


def amid_a_task(round: Round, cluster: RayCluster, rng: random.Random, slow: Path, *, node: bool) -> bool:
    """Add while a worker or its node dies, before a read at a random place; return whether one did."""
    hold = ray_workers.Hold(slow, rng.randrange(round.updates[0].header.tail_offset * 3 // 4))

    def dies(done: list[int], over: threading.Event) -> bool:
        try:
            waiting = dict[int, int]()
            while not waiting:
                if over.wait(0.02):
                    return False
                waiting = {worker: at for worker, at in elsewhere(cluster).items() if worker in hold.workers}
            worker, at = rng.choice(sorted(waiting.items()))
            if node:
                cluster.kill_node(at)
            else:
                kill(worker)
            return True
        finally:  # whatever it is: who adds waits for them
            hold.release()

    return add_while(round, dies)


def test_nodes_and_a_worker_die(cluster: RayCluster, slow: Path, tmp_path: Path) -> None:
    rng = random.Random(seed := random.randrange(1000))
    print(f"seed {seed}")
    for number in range(3):
        assert amid_a_task(Round(tmp_path / str(number), large=True), cluster, rng, slow, node=True)
        cluster.add_node()
    assert amid_a_task(Round(tmp_path / "worker", large=True), cluster, rng, slow, node=False)


@pytest.mark.long
def test_nodes_die_at_fifty_moments(cluster: RayCluster, slow: Path, tmp_path: Path) -> None:
    rng, hits = random.Random(seed := random.randrange(1000)), 0
    for number in range(50):
        round = Round(tmp_path / str(number), large=True)
        hits += at_a_random_moment(round, cluster, rng)
        shutil.rmtree(round.folder)
        cluster.add_node()
    print(f"{hits} of 50 nodes that were killed had a task; seed {seed}")
    assert hits >= 30


@dataclass
class Command:
    """`secagg aggregate --ray`, as a user starts it; its workers read slowly."""

    cluster: RayCluster
    folder: Path

    def __post_init__(self) -> None:
        self.kits = Federation.make(self.folder / "federation")
        (self.folder / "round").mkdir()
        for number, name in enumerate(("a", "b", "c")):
            site = secagg.Client.load(load_site_kit(self.kits[name]))
            site.restore_carry(b"")
            state = {"w": np.full(20 * 6 * 131072, 0.1 * number, np.float32)}
            site.encrypt_to(self.folder / "round" / f"{name}.secagg", state, 2.0, 3)

    @property
    def ranges(self) -> int:
        """How many are added by now."""
        return len(list(self.folder.glob("sum.secagg.*.digests")))

    @contextmanager
    def run(self, notes: Path, more: int) -> Iterator[subprocess.Popen[str]]:
        """Run it; the block begins when it has added some more ranges, and has tasks under way."""
        words = ["aggregate", "round/*.secagg", "--kit", self.kits["server"], "--round", 3, "--out", "sum.secagg"]
        command = [sys.executable, "-m", "secagg.cli", *map(str, words), "--ray", "auto", "--shards", "1000"]
        job = json.dumps({"runtime_env": ray_workers.environment("slow", notes)})
        environment = os.environ | self.cluster.environment | {"RAY_JOB_CONFIG_JSON_ENV_VAR": job}
        before, pipe = self.ranges, subprocess.PIPE
        with subprocess.Popen(
            command, cwd=self.folder, env=environment, stdout=pipe, stderr=pipe, text=True
        ) as process:
            try:
                while self.ranges < before + more or not self.cluster.busy():
                    assert process.poll() is None, process.communicate()
                    time.sleep(0.02)
                yield process
            finally:
                process.kill()


def test_the_command_is_stopped_and_killed_and_goes_on(cluster: RayCluster, tmp_path: Path) -> None:
    command = Command(cluster, tmp_path)
    with command.run(tmp_path / "first", 3) as process:
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)
        assert cluster.idle()
    assert process.returncode == 128 + signal.SIGTERM, said
    assert said == ("", "adding the updates of round 3\nsecagg: stopped; the same command, started again, goes on\n")
    assert not list(tmp_path.glob(".sum*"))  # nothing is half written
    with command.run(tmp_path / "second", 3) as process:
        process.kill()
    there = command.ranges
    with command.run(tmp_path / "third", 1) as process:
        kill(*list(cluster.busy())[:1])
        said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert said[1] == "adding the updates of round 3\n"
    assert re.fullmatch(r"the aggregate of round 3, the sum of 3 updates, [\d.]+ MB, is at sum.secagg\n", said[0])
    aggregator = secagg.Aggregator.load(command.kits["server"], 3)
    for path in sorted((tmp_path / "round").iterdir()):
        with secagg.Update.open(path) as update:
            aggregator.add(update)
    assert (tmp_path / "sum.secagg").read_bytes() == aggregator.finish().to_bytes()
    again = {offset for name, offset, _ in ray_workers.reads(tmp_path / "third") if name == "a.secagg"}
    frames = update.header.frame_count
    print(f"{there} of {frames} ranges were there, {len(again)} were read again")
    assert there >= 6
    assert len(again) <= frames - there


def test_a_cluster_that_adds_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integration, "_LOST_SECONDS", 3.0)
    monkeypatch.setattr(integration, "_LOOK_SECONDS", 0.2)
    monkeypatch.setattr(integration, "_IDLE_SECONDS", 1.0)
    round = Round(tmp_path)
    with running_ray(1, processors=0) as cluster:
        pool = RayPool(cluster.address)
        with pytest.raises(errors.TransportError, match="no node of the Ray cluster has had a processor for 1 s"):
            round.add(pool)
        monkeypatch.setattr(integration, "_IDLE_SECONDS", 600.0)
        other = cluster.add_node()
        for victim in (cluster.nodes[0], cluster.gcs):
            pool = RayPool(cluster.address)
            with ThreadPoolExecutor(1) as executor:
                killed = executor.submit(kill_later, victim)
                with pytest.raises(errors.TransportError, match="this machine's node, is lost|LocalRayletDied"):
                    round.add(pool)
                assert time.monotonic() - killed.result() < 30
            assert not ray.is_initialized()
        assert psutil.pid_exists(other)
    assert not round.target.exists()
    assert len(list(tmp_path.iterdir())) == 3


def kill_later(victim: int) -> float:
    time.sleep(1)
    kill(victim)
    return time.monotonic()


@pytest.mark.parametrize(
    "address", ["", "local", "here", "10.0.0.7", "http://10.0.0.7:80", "ray://", ":1", "a:b", 6379]
)
def test_addresses_that_are_none(address: object, monkeypatch: pytest.MonkeyPatch) -> None:
    message = "the Ray cluster's address is .*give HOST:PORT, ray://HOST:PORT, or auto"
    with pytest.raises(errors.ConfigError, match=message):
        RayPool(address)  # type: ignore[arg-type]
    monkeypatch.setenv("RAY_ADDRESS", str(address) or "local")
    with pytest.raises(errors.ConfigError, match=message):
        RayPool("auto")
    assert not ray.is_initialized()


def test_joined_twice_or_not_at_all(cluster: RayCluster) -> None:
    with pytest.raises(errors.StateError, match=r"joined no Ray cluster.*ray.init\(\)"):
        RayPool()
    ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        with pytest.raises(errors.StateError, match=r"joined a Ray cluster already.*ray.shutdown\(\)"):
            RayPool(cluster.address)
        pool = RayPool()
    finally:
        ray.shutdown()
    with pytest.raises(errors.StateError, match="joined no Ray cluster"):  # it would start one
        next(pool.run(cast(SumJob, None), [0]))


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_no_cluster_there(scheme: str) -> None:
    started = time.monotonic()
    with pytest.raises(errors.TransportError, match="no Ray cluster at .*Connection refused.*ray start --head"):
        RayPool(f"{scheme}127.0.0.1:{free_port()}")
    assert time.monotonic() - started < 5
    assert not ray.is_initialized()


def test_something_else_is_there() -> None:
    """In a process of its own: Ray does not stop asking."""
    code = "from secagg.integrations import ray; ray._JOIN_SECONDS = 1; ray.RayPool('auto')"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        environment = os.environ | {"RAY_ADDRESS": f"127.0.0.1:{listener.getsockname()[1]}"}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
        )
    assert "secagg.errors.TransportError: no Ray cluster at" in done.stderr
    assert "no answer for 1 s" in done.stderr


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(errors.BackendUnavailableError, match=r"pip install 'secagg\[ray\]'"):
        RayPool("auto")
