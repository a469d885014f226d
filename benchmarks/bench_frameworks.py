"""secagg inside frameworks: beside NVFlare's own HE, and what Flower adds to an update. A million parameters.

Here speed is asserted, in CPU time, which other programs disturb less: what is compared differs tenfold.
"""

from __future__ import annotations

import gc
import tracemalloc
from importlib.metadata import version
from statistics import median

import pytest
from flower_grid import ToyGrid
from flower_nodes import to_record
from flower_sides import Changer, ForgetfulGrid, nodes_of
from flwr.serverapp.strategy import FedAvg
from million import INITIAL, RAW_NBYTES, draw_change, error_bound, limits, max_error, weighted_mean
from nvflare_sides import Peer, SecAgg
from provisioned import Federation
from report import TARGETS, Target

import secagg
from secagg.bench.peers import nvflare_he, nvflare_raw
from secagg.bench.settings import SETTINGS
from secagg.integrations.flower import SecAggStrategy
from secagg.trust import load_server_kit

ROUNDS, SERVERS = 3, 3
MEASURED = ("tenseal", "seal-sums", "seal-bgv-16", "flashe-16")

TARGETS.update(
    {
        "nvflare-size-tenseal": Target(
            "message in NVFlare, 1 M parameters, tenseal with Clara's params", 2.5, "× smaller than under its HE", True
        ),
        "nvflare-time-tenseal": Target(
            "… server, CPU time a client: unpack + add", 10, "× less than under its HE", True
        ),
        "nvflare-size-seal-bgv-16": Target("… seal BGV 16: message", 19, "× smaller than under its HE", True),
        "nvflare-time-seal-bgv-16": Target(
            "… server, CPU time a client: unpack + add", 30, "× less than under its HE", True
        ),
        "flower-size": Target("upload in Flower, 1 M parameters, any backend", 1.01, "× an update"),
        "flower-memory": Target("server in Flower: memory at 20 nodes less than at 3", 1, "× a reply"),
    }
)


@pytest.fixture(scope="module")
def worst():
    """Bytes of uploads, by backend."""
    return {}


def test_nvflare(benchmark, report, times, tmp_path_factory):
    """A client of each side at a time; each round's mean is held against the plain one."""
    steps = {f"site-{number}": 10 * number for number in range(1, 6)}
    changes = {site: draw_change(number) for number, site in enumerate(steps)}
    expected = weighted_mean(changes, steps)
    peers = {"clear": nvflare_raw, "own HE": nvflare_he}
    sides = {name: Peer(parts, tmp_path_factory.mktemp("peer"), len(steps), SERVERS) for name, parts in peers.items()}
    sides |= {name: SecAgg(tmp_path_factory.mktemp(name), SETTINGS[name].he, steps, SERVERS) for name in MEASURED}
    sending, taking = {name: times() for name in sides}, {name: times() for name in sides}
    up, down, errors = {}, {}, dict.fromkeys(sides, 0.0)

    def rounds() -> None:
        for _ in range(ROUNDS):
            for site in steps:
                for name, side in sides.items():
                    message = sending[name].run(side.send, site, changes[site], steps[site])
                    up[name] = len(message)
                    for server in side.servers:
                        taking[name].run(side.take, server, message)
            for name, side in sides.items():
                down[name], decrypted = side.finish()
                errors[name] = max(errors[name], max_error(decrypted, expected))

    benchmark.pedantic(rounds)
    for name, side in sides.items():
        assert errors[name] <= side.error_bound
        benchmark.extra_info[name] = {
            "nbytes": up[name],
            "of_raw": up[name] / RAW_NBYTES,
            "site_seconds": sending[name].seconds,
            "server_seconds": taking[name].seconds,
            "server_cpu_seconds": median(taking[name].cpu),
            "aggregate_nbytes": down[name],
            "max_error": errors[name],
        }
    benchmark.extra_info["versions"] = {name: version(name) for name in ("nvflare", "tenseal", "seal-python")}
    for name in ("tenseal", "seal-bgv-16"):
        detail = f"{up[name] / 1e6:.2f} of {up['own HE'] / 1e6:.2f} MB, tenseal {version('tenseal')}"
        size = report.measure(f"nvflare-size-{name}", up["own HE"] / up[name], detail)
        ours, theirs = taking[name], taking["own HE"]
        cpu, bare_cpu = median(ours.cpu), median(theirs.cpu)
        detail = f"{cpu * 1e3:.1f} of {bare_cpu * 1e3:.0f} ms; {ours.seconds / theirs.seconds:.3f} × on the wall"
        time = report.measure(f"nvflare-time-{name}", bare_cpu / cpu, detail)
        assert size.met
        assert time.met


@pytest.mark.parametrize("backend", MEASURED)
def test_flower_upload(backend, worst, benchmark, message, report, tmp_path):
    """All that a node pushes after training: the objects of its reply, as they are serialised."""
    steps = {"site-1": 10, "site-2": 20, "site-3": 30}
    changes = {site: draw_change(number) for number, site in enumerate(steps)}
    federation = Federation.make(tmp_path, sites=list(steps), he=SETTINGS[backend].he, aggregation=limits(steps))
    apps = {site: Changer(changes[site], steps[site]) for site in steps}
    grid = ToyGrid(*nodes_of(federation, apps))
    strategy = SecAggStrategy(FedAvg(), federation["server"])
    benchmark.pedantic(lambda: strategy.start(grid, to_record(INITIAL), 1))
    expected, config = weighted_mean(changes, steps), load_server_kit(federation["server"]).config
    assert max(max_error(app.evaluated, expected) for app in apps.values()) <= error_bound(config, steps)
    envelopes = []
    for reply, pushed in grid.replied[: len(steps)]:
        update = secagg.Update.from_bytes(reply.content["arrays"]["update"].data)
        envelopes.append(pushed - update.nbytes)
    message(update, apps["site-1"].evaluated, expected)
    benchmark.extra_info["envelope_nbytes"] = max(envelopes)
    worst[backend] = max(envelopes) / update.nbytes, max(envelopes)
    top = max(worst, key=worst.get)
    detail = f"{len(worst)} backends, the worst {top}: {worst[top][1]} bytes beside the update"
    assert report.measure("flower-size", 1 + worst[top][0], detail).met


def test_flower_memory(benchmark, message, report, progress, tmp_path):
    """Of the server, from the first reply to the aggregate: as much at 20 nodes as at 3."""

    def peak(count: int) -> tuple[int, int]:
        progress(f"{count} nodes")
        steps = {f"site-{number}": number for number in range(1, count + 1)}
        folder = tmp_path / str(count)
        folder.mkdir()
        federation = Federation.make(folder, sites=list(steps), he=SETTINGS["flashe-16"].he, aggregation=limits(steps))
        change = draw_change(0)
        apps = {site: Changer(change, number) for site, number in steps.items()}
        grid = ForgetfulGrid.make(folder, *nodes_of(federation, apps))
        strategy = SecAggStrategy(FedAvg(fraction_evaluate=0.0), federation["server"])
        gc.collect()
        tracemalloc.start()
        try:
            result = strategy.start(grid, to_record(INITIAL), 1)
            above = tracemalloc.get_traced_memory()[1] - grid.base
        finally:
            tracemalloc.stop()
        aggregate = secagg.Update.from_bytes(result.arrays["aggregate"].data)
        assert len(aggregate.header.contributions) == count
        return above, aggregate.nbytes

    (few, nbytes), (many, _) = benchmark.pedantic(lambda: [peak(3), peak(20)])
    message(nbytes, peak=many)
    benchmark.extra_info["peaks"] = {3: few, 20: many}
    detail = f"{few / 1e6:.1f} MB at 3, {many / 1e6:.1f} MB at 20; an update {nbytes / 1e6:.2f} MB"
    assert report.measure("flower-memory", (many - few) / nbytes, detail).met
