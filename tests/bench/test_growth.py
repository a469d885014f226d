"""`secagg bench growth`: its short form, the fits, the links, and limits that are those of the code."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import pytest

from secagg.aggregator import Aggregator
from secagg.bench.growth import limits, measure, run
from secagg.bench.growth.costs import Costs, planned_sizes
from secagg.bench.growth.links import Cost, round_seconds
from secagg.bench.growth.model import make_model
from secagg.bench.growth.process import working, write_federation
from secagg.bench.growth.slopes import fit
from secagg.bench.growth.worker import WrongMeanError
from secagg.bench.results import Results
from secagg.bench.settings import SETTINGS
from secagg.cli import main
from secagg.client import Client
from secagg.errors import QuotaError, SecAggError
from secagg.integrations.grpc import server as transport
from secagg.keygen import generate_keys
from secagg.scheme import aggregation
from secagg.server import Limits
from secagg.wire import container

COST = Cost(1_250_000, 2_500_000, 1.0, 0.5, 0.25, 2.0)
COSTS = Costs("flashe-16", 10**5, Cost(296_149, 296_323, 0.002, 0.0005, 0.0003, 0.0015), 1e-10)


def test_short_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "growth.json"
    assert main(["bench", "growth", "--small", "--out", str(out)]) == 0
    results = Results.load(out, "growth")
    assert results.command == f"secagg bench growth --small --out {out}"
    data, shown = results.data, capsys.readouterr().out
    json.dumps(dict(data), allow_nan=False)
    for row in data["parameters"]:
        assert row["problem"] is None
        # Sizes are those of files, and what was computed from the layout is the same.
        assert row["up_nbytes"] == planned_sizes(row["setting"], row["parameters"], run.PLANNED).up_nbytes
    assert {row["sites"] for row in data["sites"]} == set(run.SMALL.sites)
    for row in data["sites"]:
        expected = planned_sizes(row["setting"], row["parameters"], row["sites"])
        assert (row["up_nbytes"], row["down_nbytes"]) == (expected.up_nbytes, expected.down_nbytes)
    slopes = {(row["what"], row["setting"]): row for row in data["slopes"]}
    assert slopes["bytes up, by parameters", "flashe-16"]["words"].endswith("linear")
    assert len(data["links"]) == len(run.SMALL.settings) * len(run.SMALL.sites) * len(run.LINKS)
    for row in data["links"]:  # by a slow link, fewer bytes are all that counts
        assert row["bits_per_second"] > 1e7 or row["round_seconds"] < row["raw_round_seconds"]
    assert {row["sites"] for row in data["extrapolation"]} == {aggregation.MAX_CLIENTS}
    assert all(row["value"] > 0 for row in data["extrapolation"])
    reached = [row["at"] for row in data["limits"] if row["at"] is not None]
    assert reached == sorted(reached)
    for words in ("simulated", "slopes", "linear", "max_clients", "what breaks first"):
        assert words in shown


def test_slopes() -> None:
    xs = [1e5, 1e6, 1e7, 1e8]
    line = fit(xs, [3e-9 * x for x in xs])
    assert line is not None
    assert (round(line.slope, 9), round(math.exp(line.intercept), 15)) == (1.0, 3e-9)
    assert line.words == "1.00 ± 0.00 = linear"
    root = fit(xs, [math.sqrt(x) for x in xs])
    assert root is not None
    assert root.words == "0.50 ± 0.00 = slower than linear"
    flat = fit(xs, [7, 7, 7, 7])
    assert flat is not None
    assert (flat.words, flat.r_squared) == ("0.00 ± 0.00 = flat", 1.0)


def test_the_interval_of_a_slope() -> None:
    """By hand: x 0, 1, 2, y 0, 1.1, 1.9 in logarithms; slope 0.95, residuals −0.05, 0.1, −0.05."""
    line = fit([math.exp(x) for x in (0, 1, 2)], [math.exp(y) for y in (0, 1.1, 1.9)])
    assert line is not None
    half = 12.7062 * math.sqrt(0.015 / 1 / 2)  # of Student's distribution with one degree of freedom
    assert (line.slope, line.intercept) == (pytest.approx(0.95), pytest.approx(0.05))
    assert (line.low, line.high) == (pytest.approx(0.95 - half, abs=1e-4), pytest.approx(0.95 + half, abs=1e-4))
    assert line.words == "0.95 ± 1.10: too uncertain to tell"


def test_too_few_points_have_no_slope() -> None:
    assert fit([1, 2], [1, 2]) is None
    assert fit([1, 2, 3], [0, 1, 2]) is None


def test_rounds_over_links() -> None:
    """At 10 Mbit/s an update takes 1 s, and a sum 2 s; the third upload follows when the first two have ended."""
    assert round_seconds(COST, 3, 1e7, 2) == 1.0 + (3.0 + 0.5) + 0.25 + 3 * 2.0 + 2.0
    # All come at once, and are added one after another.
    assert round_seconds(COST, 3, 1e7, 16) == 1.0 + (3.0 + 3 * 0.5) + 0.25 + 6.0 + 2.0
    # Slow additions: the server has not ended with the first two when the third comes.
    assert round_seconds(replace(COST, add_seconds=4.0), 3, 1e7, 2) == 1.0 + (2.0 + 8.0 + 4.0) + 0.25 + 6.0 + 2.0
    assert round_seconds(COST, 3, math.inf, 2) == 1.0 + 1.5 + 0.25 + 2.0


def test_costs_of_more_sites() -> None:
    sizes, cost = planned_sizes("flashe-16", 10**5, 1000), COSTS.cost(1000)
    up = sizes.up_nbytes
    assert (cost.up_nbytes, cost.down_nbytes) == (up, sizes.down_nbytes)
    assert cost.encrypt_seconds == pytest.approx(0.002 * up / 296_149)
    assert cost.decrypt_seconds == pytest.approx(0.0015 * up / 296_149 + 998 * up * 1e-10)


@pytest.mark.parametrize("least", [2, 3, 100, 8192, 9_999])
def test_search(least: int) -> None:
    assert limits.most_sites(lambda sites: sites <= least, 10_000) == least
    assert limits.most_sites(lambda sites: sites <= 10_000, 10_000) is None

    def refuses(sites: int) -> bool:
        if sites > least:
            raise SecAggError
        return True

    assert limits.most_sites(refuses, 10_000) == least


def test_limits_are_those_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_MOST", 3_000)  # the true ones take seconds to find

    def found() -> dict[str, int | None]:
        return {limit.what: limit.at for limit in limits.find_limits([COSTS])}

    before = found()
    assert before["max_clients"] is before["sites in a manifest"] is before["connections of the server"] is None
    assert before["downloads at once at 100 Mbit/s"] == 715  # 60 s × 12.5 MB/s, in frames of 1 MiB and a digest
    monkeypatch.setattr(aggregation, "MAX_CLIENTS", 500)
    monkeypatch.setattr(transport, "_MAX_CONNECTIONS", 300)
    monkeypatch.setattr(container, "MAX_HEADER_NBYTES", 100_000)
    monkeypatch.setattr(limits.yaml_file, "MAX_YAML_NBYTES", 10_000)
    monkeypatch.setattr(limits, "Limits", partial(Limits, disk_quota=10**8))
    after = found()
    assert (after["max_clients"], after["connections of the server"]) == (500, 300)
    for what in ("a manifest", "the head of a sum", "project.yaml", "disk of the server"):
        assert next(at for name, at in after.items() if name.endswith(what)) in range(10, 1000)
    first = limits.find_limits([COSTS])[0]
    assert first.at == min(at for at in after.values() if at is not None)
    assert limits.first_of([first], "flashe-16").startswith(f"flashe-16: {first.what} first, beyond {first.at:,} sites")


def test_no_room_on_the_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: _Usage(1 << 30))
    with pytest.raises(QuotaError, match=r"it needs 1\.1 GB of disk in .*, 1\.1 GB are free"):
        measure.measure("flashe-16", 10**5, 30, folder=tmp_path)
    assert not list(tmp_path.iterdir())
    scope = replace(run.SMALL, parameters={"flashe-16": [10**4]}, sites=())
    data = run.run(scope)
    (row,) = data["parameters"]
    assert row["problem"].startswith("QuotaError: it needs ")
    assert row["encrypt_seconds"] is row["up_nbytes"] is None
    assert data["links"] == data["limits"] == data["extrapolation"] == []


def test_no_room_in_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(measure, "available", lambda: 1 << 30)
    with pytest.raises(QuotaError, match=r"it needs 1\.1 GB of memory, 1\.1 GB are available"):
        measure.measure("exact", 10**5, 30, folder=tmp_path)


def test_a_wrong_mean_is_no_row_without_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A site in a process of its own decrypts a sum of other values than its model's."""
    config = SETTINGS["flashe-16"].config(30)
    keys = generate_keys(config)
    write_federation(tmp_path, config, keys)
    sum_of, path = Aggregator(config, keys.server), tmp_path / "aggregate.secagg"
    for name in ("site-1", "site-2"):
        zeros = {key: np.zeros_like(value) for key, value in make_model(100).items()}
        sum_of.add(Client(config, keys.client, name).encrypt(zeros))
    sum_of.finish().save(path)

    def decrypt(*scope: object) -> None:
        with working("site", tmp_path, 100) as site:
            site.ask("decrypt", str(path), 1)

    monkeypatch.setattr(run, "measure", decrypt)
    with pytest.raises(WrongMeanError, match="site, decrypt: the mean of 2 sites is off by "):
        run.run(run.SMALL)


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "secagg.cli", "bench", "growth", "--out", str(tmp_path / "growth.json")]
    environment = {"TMPDIR": str(tmp_path), "PATH": "", "PYTHONPATH": str(Path.cwd())}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        while not (workers := psutil.Process(process.pid).children()):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert errors.endswith("secagg: stopped\n")
    assert not list(tmp_path.iterdir())
    assert not any(worker.is_running() for worker in workers)


class _Usage(NamedTuple):
    free: int
