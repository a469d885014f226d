"""The server dies at a chosen call to the file system: before it, after it, in a write; or the power fails.

As in test_killed_server.py: what is acknowledged is in the sum, once, and the sum is that of an `Aggregator` alone.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import power
import pytest
from five_sites import SITES, FiveSites, make_kits
from mortal import MortalServer

from .conftest import Report, Watch

# CPython drops an SSL socket unclosed if the connection is reset before the handshake.
pytestmark = pytest.mark.filterwarnings(r"ignore:unclosed <ssl\.SSLSocket:ResourceWarning")

HOW = ("before", "after", "half")


def crash_points(rng: random.Random, calls: int) -> Iterator[tuple[int, str]]:
    """Yield points at random; none comes again before every call of a round, and of the start, had its turn."""
    while True:
        points = list(range(1, calls + 1))
        rng.shuffle(points)
        for point in points:
            yield point, rng.choice(HOW)


LONG = [
    pytest.param(scheme, kept, 200, id=f"{scheme}-{name}-200", marks=pytest.mark.long)
    for scheme in ("flashe", "auto")
    for name, kept in (("kill", None), ("power", 0.0), ("power-half", 0.5))
]


@pytest.mark.parametrize(
    ("scheme", "kept", "deaths"),
    [
        pytest.param("auto", None, 3, id="auto-kill"),
        pytest.param("flashe", 0.0, 3, id="flashe-power"),
        pytest.param("auto", 0.5, 3, id="auto-power-half"),
        *LONG,
    ],
)
def test_a_death_at_every_call(
    scheme: str, kept: float | None, deaths: int, tmp_path: Path, seed: int, watch: Watch, report: Report
) -> None:
    rng, began = random.Random(seed), time.monotonic()
    kits = make_kits(tmp_path, scheme, 500_000)
    with (
        MortalServer(kits["server"], tmp_path / "server") as server,
        FiveSites(kits, tmp_path / "sites", server.address) as five,
    ):
        calls = count_calls(server, five, tmp_path / "count")
        points, done = crash_points(rng, calls), 0
        start(server, next(points), tmp_path / "shadow", kept)
        while done < deaths:
            watch()
            five.prepare()
            futures = five.begin()
            while not all(future.done() for future in futures):
                if server.dead_by_kill():
                    watch()
                    done += 1
                    if kept is not None:
                        power.fail(server.run, tmp_path / "shadow", rng, kept)
                    start(server, next(points) if done < deaths else None, tmp_path / "shadow", kept)
                time.sleep(0.01)
            for future in futures:
                future.result()
            five.ledger.check_new(server.run)
        watch()
        five.play()
        five.ledger.check_new(server.run)
        server.stop()
    ledger = five.ledger
    assert ledger.acknowledged == len(SITES) * ledger.checked
    report(
        f"seed {seed}: {done} deaths at {calls} calls, {server.lives} starts, {ledger.checked} rounds, "
        f"{ledger.acknowledged} updates acknowledged, all in the sum once; {time.monotonic() - began:.0f} s"
    )


@pytest.mark.parametrize("fsync", [True, False])
def test_only_fsync_makes_updates_last(fsync: bool, tmp_path: Path) -> None:
    """The power failure of these tests takes what was not synchronised: what is acknowledged without fsync is lost."""
    kits = make_kits(tmp_path, "flashe", 500_000)
    shadow = tmp_path / "shadow"
    shadow.mkdir()
    with (
        MortalServer(kits["server"], tmp_path / "server") as server,
        FiveSites(kits, tmp_path / "sites", server.address) as five,
    ):
        server.run.mkdir(parents=True)
        server.start({"folder": str(server.run), "shadow": str(shadow), "fsync": fsync})
        five.join()
        for site in five.sites[:3]:
            site.session.upload(site.update_of(0, five.ledger.bases[0]))
        assert five.ledger.acknowledged == 3
        assert server.process is not None
        server.process.send_signal(signal.SIGUSR1)
        assert server.dead_by_kill(wait=True)
        power.fail(server.run, shadow, random.Random(0), kept=0.0)
        server.start()
        added = five.sites[0].session.status().added
        assert added == (SITES[:3] if fsync else ())


def count_calls(server: MortalServer, five: FiveSites, path: Path) -> int:
    """How many calls there are from a start to the end of a round."""
    server.start({"folder": str(server.run), "count": str(path)})
    five.join()
    five.play()
    five.ledger.check_new(server.run)
    server.stop()
    return int(path.read_text())


def start(server: MortalServer, point: tuple[int, str] | None, shadow: Path, kept: float | None) -> None:
    if point is None:
        server.start()
        return
    crash: dict[str, Any] = {"folder": str(server.run), "call": point[0], "how": point[1]}
    if kept is not None:
        for old in shadow.glob("*"):
            old.unlink()
        shadow.mkdir(exist_ok=True)
        crash["shadow"] = str(shadow)
    server.start(crash)
