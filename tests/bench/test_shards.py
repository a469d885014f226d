"""`secagg bench shards`: its short form, and a simulated round whose numbers are worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import made_up_results as made_up
import pytest

from secagg.bench.results import Results
from secagg.bench.shards.prices import Prices, cost
from secagg.bench.shards.run import conclude
from secagg.bench.shards.simulation import Plan, Rates, added_seconds, driver_nbytes, server_enough, simulate
from secagg.cli.__main__ import main
from secagg.shards.ranges import AHEAD

MIB = 1 << 20

#: A core adds 8 MiB in 10 ms.
RATES = Rates(sum_seconds=0.01 / (8 * MIB), head_seconds=0.001, worker_nbytes=10**8, where="made up")

#: 4 ranges of 32 MiB, a worker each; nothing but cores takes time.
PLAN = Plan(
    sites=100,
    update_nbytes=128 * MIB,
    nodes=2,
    cores=2,
    node_bits=1e15,
    site_bits=8 * 128 * MIB,
    latency=0.0,
    stream=1e15,
    gets=1e9,
    copy_seconds=0.5,
    slow=1.0,
)


def stages(plan: Plan) -> dict[str, tuple[float, str]]:
    return {stage.name: (pytest.approx(stage.seconds), stage.bound) for stage in simulate(plan, RATES)}


def test_what_bounds_a_round() -> None:
    assert stages(PLAN) == {
        "sites send": (1.0, "sites' links"),
        "heads": (0.1, "the driver's core"),
        "ranges": (100 * 4 * 0.01, "cores"),
        "the slowest worker": (0.0, "assumed"),
        "put together": (0.5, "the store's copies"),
        "sites read": (1.0, "sites' links"),
    }
    # Two waves of four workers, and one of three, who take as long.
    assert stages(replace(PLAN, shards=11))["ranges"] == (pytest.approx(3 * 100 * 128 / 11 / 8 * 0.01), "cores")
    assert stages(replace(PLAN, cores=1))["ranges"] == (8.0, "cores")
    assert stages(replace(PLAN, slow=3.0))["the slowest worker"] == (8.0, "assumed")
    # 100 × 32 MiB at half a link of 80 MiB/s, at as many requests of 8 MiB in 75 ms as a worker has under way, at a
    # quarter of 40 requests a second.
    assert stages(replace(PLAN, node_bits=8 * 80 * MIB))["ranges"] == (80.0, "machines' links")
    assert stages(replace(PLAN, latency=0.065, stream=800 * MIB))["ranges"] == (pytest.approx(30 / AHEAD), "latency")
    # Of ranges of 1 MiB a request has no more.
    small = replace(PLAN, update_nbytes=4 * MIB, shards=4, latency=0.1)
    assert stages(small)["ranges"] == (pytest.approx(100 * 0.1 / AHEAD), "latency")
    assert stages(replace(PLAN, gets=40))["ranges"] == (40.0, "the store's requests")
    assert stages(replace(PLAN, latency=0.032))["heads"] == (pytest.approx(0.6), "latency")


def test_one_unfit_update_is_a_second_pass_over_the_others() -> None:
    once, twice = (added_seconds(replace(PLAN, unfit=unfit), RATES) for unfit in (0, 1))
    assert once == pytest.approx(0.1 + 4.0 + 0.5)
    assert twice == pytest.approx(once + 0.99 * 4.1)


def test_bytes_requests_and_memory() -> None:
    found = {stage.name: stage for stage in simulate(PLAN, RATES)}
    assert found["sites send"].nbytes == 100 * 128 * MIB
    assert found["sites send"].requests == 100 * (8 + 2)
    assert found["ranges"].nbytes == 101 * 128 * MIB
    assert found["ranges"].requests == 100 * 4 * 4 + 4 * (2 + 3)
    assert found["put together"].requests == 4 + 2
    assert driver_nbytes(PLAN) == 100 * 128 * 32


def test_cost() -> None:
    prices = Prices(storage=7.3, puts=10, gets=1, egress=2, node=36, kept=100)
    found = cost(replace(PLAN, update_nbytes=128 * 10**6), RATES, prices)
    assert found["puts"] == 100 * 10 + 4 * (2 + 3) + 6
    assert found["gets"] == 100 * (3 + 16 + 16)
    assert found["storage"] == pytest.approx((12.8 + 0.256) * 100 / 730 * 7.3)
    assert found["requests"] == pytest.approx(10.26 + 3.5)
    assert found["egress"] == pytest.approx(25.6)
    assert found["machines"] == pytest.approx(2 * added_seconds(replace(PLAN, update_nbytes=128 * 10**6), RATES) / 100)
    assert found["total"] == pytest.approx(sum(found[name] for name in ("storage", "requests", "egress", "machines")))


def test_up_to_where_one_server_is_as_fast() -> None:
    """A server takes 0.1 s of an update, the machines 1.5 s and 0.041 s of one: as long at 25.4."""
    assert server_enough(PLAN, RATES, 1280 * MIB) == 25
    assert server_enough(PLAN, RATES, 1e18) is None
    assert server_enough(PLAN, RATES, 1.0) == 0


def test_short_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place, out = tmp_path / "updates", tmp_path / "shards.json"
    place.mkdir()
    given = ["bench", "shards", "--place", str(place), "--updates", "3", "--parameters", "100000", "--turns", "1"]
    assert main([*given, "--out", str(out), "--price", "egress=0"]) == 0
    assert list(place.iterdir()) == []
    shown = capsys.readouterr().out
    for text in ("2 workers", "Memory of a worker", "sites send", "one update unfit", "a round", "What is assumed:"):
        assert text in shown
    results = Results.load(out, "shards")
    (row,) = results.data["rows"]
    assert row["nbytes"] // 3 == row["update_nbytes"] > 200_000
    assert all(turn["seconds"] > 0 for side in ("read_1", "sum_1", "read_2", "sum_2") for turn in row[side])
    assert {row["egress"] for row in results.data["costs"]} == {0}
    json.dumps(dict(results.data), allow_nan=False)


def test_rates_of_an_earlier_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known, out = tmp_path / "known.json", tmp_path / "out.json"
    made_up.shards_results().save(known)
    given = ["bench", "shards", "--rates", str(known), "--sites", "300", "--megabytes", "2000", "--gbit", "25"]
    assert main([*given, "--nodes", "8", "--cores", "4", "--shards", "64", "--out", str(out)]) == 0
    assert "300 sites × 2.00 GB on 8 × 4 cores" in capsys.readouterr().out
    before, after = (Results.load(path, "shards") for path in (known, out))
    assert after.data["rows"] == before.data["rows"]
    assert after.machine == before.machine
    plan = Plan(sites=300, update_nbytes=2 * 10**9, nodes=8, cores=4, node_bits=25e9, shards=64)
    assert after.data == json.loads(
        json.dumps(conclude(before.data["rows"], plan, Prices(), 4e8, before.data["memory"]))
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--price", "bread=1"], "--price is 'bread=1'"),
        (["--price", "egress"], "--price is 'egress'"),
        (["--price", "egress=-1"], "--price is 'egress=-1'"),
        (["--price", "egress=nan"], "--price is 'egress=nan'"),
        (["--sites", "0"], "--sites is 0"),
        (["--gbit", "0"], "--gbit is 0"),
        (["--shards", "-1"], "--shards is -1"),
        (["--updates", "1"], "--updates is 1; give 2 at least"),
        (["--turns", "0"], "--turns is 0; give 1 at least"),
        (["--rates", "missing.json"], "cannot read 'missing.json'"),
    ],
)
def test_wrong_options(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "shards", *options]) != 0
    assert message in capsys.readouterr().err


def test_rates_of_another_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made_up.bench_results().save(tmp_path / "bench.json")
    assert main(["bench", "shards", "--rates", str(tmp_path / "bench.json")]) != 0
    assert "holds results of 'bench'; give those of `secagg bench shards`" in capsys.readouterr().err
