"""What ``precision: auto`` loses, with no number configured but the sites: beside raw averaging and a simulation.

Raw and encrypted are paired: the updates of a raw run are kept, and the encrypted one gets the very same.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from precision_federation import Federation
from precision_simulation import Simulation
from precision_table import PrecisionTable
from precision_tasks import TASKS
from precision_trajectory import record
from report import TARGETS, Target

ROUNDS, SEEDS, LAST = 20, 5, 5
BITS = (6, 8, 12)
CLOSED = "ViT, digits"
UNEVEN = "digits, 5 to 500"

TARGETS.update(
    {
        "precision-metric": Target("precision auto, 5 tasks: metric beside raw, any of 20 rounds", 0.005, "absolute"),
        "precision-closed": Target(f"… {CLOSED}, in closed loop, {SEEDS} seeds", 0.005, "absolute"),
        "precision-nmse": Target("… error of the mean at 6, 8, 12 bits", 1.1, "× a float64 simulation"),
        "precision-size-flashe-3": Target("… update size, flashe, 3 sites planned", 0.26, "× raw float32"),
        "precision-size-flashe-30": Target("… 30 sites planned", 0.41, "× raw float32"),
        "precision-size-bgv-3": Target("… seal BGV, 3 sites planned", 0.30, "× raw float32"),
        "precision-size-bgv-30": Target("… 30 sites planned", 0.43, "× raw float32"),
        "precision-calibration-size": Target("… calibration, both ways", 0.01, "× an update"),
        "precision-calibration-flashe": Target("… calibrate + to_bytes, flashe", 0.3, "× encrypt + to_bytes"),
        "precision-calibration-bgv": Target("… seal BGV", 0.03, "× encrypt + to_bytes"),
        "precision-max-weight": Target("… max_weight up to 10⁶ × too large: error of the mean", 0.1, "of difference"),
    }
)

#: Backends by their short names; value_bits and all else are planned.
HE = {"flashe": {"lib": "flashe", "config": {}}, "bgv": {"lib": "seal", "config": {"scheme": "BGV"}}}
PRESETS = ("exact", "smallest")


@pytest.fixture(scope="module")
def trajectory():
    """``trajectory(task)``: recorded once."""
    return cache(lambda name: record(TASKS[name](), ROUNDS))


@pytest.fixture(scope="module")
def simulated(trajectory):
    """``simulated(task, bits)``: the error that the design has."""

    def error(name: str, bits: int) -> float:
        recorded = trajectory(name)
        return recorded.replay(Simulation(recorded.task.weights, bits), metric=False).nmse

    return cache(error)


@pytest.fixture(scope="module")
def closed():
    """``closed(preset)``: the metric in closed loop, the mean of the last rounds of all seeds; raw without a preset."""
    task = TASKS[CLOSED]()

    def last(seed: int, preset: str | None) -> float:
        average = None if preset is None else Federation({"preset": preset}, task.weights)
        run = record(task, ROUNDS, seed, average)
        assert run.finite
        return float(np.mean(run.metrics[-LAST:]))

    return cache(lambda preset: float(np.mean([last(seed, preset) for seed in range(SEEDS)])))


@pytest.fixture(scope="module")
def worst():
    """``worst(target, case, number)``: the largest of a target's cases so far, and all of them as text."""
    cases: dict[str, dict[str, float]] = {}

    def note(target: str, case: str, number: float) -> tuple[float, str]:
        found = cases.setdefault(target, {})
        found[case] = number
        top = max(found, key=lambda name: found[name])
        return found[top], f"{len(found)} cases, the worst {top}"

    return note


@pytest.fixture(scope="module")
def table(request):
    table = PrecisionTable()
    request.config.pluginmanager.register(table)
    return table


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", TASKS)
def test_metric(name, preset, trajectory, worst, table, benchmark, message, report, progress):
    progress("trains")
    raw = trajectory(name)
    federation = Federation({"preset": preset}, raw.task.weights)
    run = benchmark.pedantic(lambda: raw.replay(federation))
    assert raw.finite
    assert raw.metrics[-1] > 0.55  # a model that has learned
    assert run.finite
    assert run.least_variance >= 0
    lost = float(np.abs(np.subtract(run.metrics, raw.metrics)).max())
    table[name].raw, table[name].lost[preset] = raw.metrics[-1], (lost, federation.config.params.value_bits)
    message(federation.nbytes)
    benchmark.extra_info.update(raw=raw.metrics, encrypted=run.metrics, nmse=run.nmse)
    assert report.measure("precision-metric", *worst("precision-metric", f"{name}, {preset}", lost)).met


@pytest.mark.parametrize("preset", PRESETS)
def test_closed_loop(preset, closed, worst, benchmark, report):
    """Sites train on what they have decrypted."""
    raw, ours = closed(None), benchmark.pedantic(lambda: closed(preset))
    benchmark.extra_info.update(raw=raw, encrypted=ours)
    case = f"{preset} {ours:.4f}, raw {raw:.4f}"
    assert report.measure("precision-closed", *worst("precision-closed", case, abs(raw - ours))).met


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("backend", HE)
@pytest.mark.parametrize("name", TASKS)
def test_error(name, backend, bits, trajectory, simulated, worst, table, benchmark, message, report):
    raw = trajectory(name)
    federation = Federation(with_bits(backend, bits), raw.task.weights)
    ours, theirs = benchmark.pedantic(lambda: raw.replay(federation, metric=False)).nmse, simulated(name, bits)
    table[name].errors[backend, bits], table[name].simulated[bits] = ours, theirs
    message(federation.nbytes)
    benchmark.extra_info.update(nmse=ours, simulated=theirs)
    case = f"{name}, {backend} {bits}: {ours:.2e}, simulated {theirs:.2e}"
    assert report.measure("precision-nmse", *worst("precision-nmse", case, ours / theirs)).met


@pytest.mark.parametrize("sites", [3, 30])
@pytest.mark.parametrize("backend", HE)
def test_size(backend, sites, benchmark, message, report, model, flat):
    federation = Federation(HE[backend], [1.0, 1.0], max_clients=sites)
    scales = federation.scales([model, model], 0)
    update = benchmark.pedantic(lambda: federation.sites[0].encrypt(model, calibration=scales))
    bits = federation.config.params.value_bits
    benchmark.extra_info["value_bits"] = bits
    message(update)
    detail = f"{update.nbytes / 1e6:.2f} MB, {bits} bits"
    assert report.measure(f"precision-size-{backend}-{sites}", update.nbytes / flat.nbytes, detail).met


@pytest.mark.parametrize("backend", HE)
def test_calibration(backend, compare, worst, benchmark, message, report, model):
    """Of a round in which there are residuals to pay back."""
    federation = Federation(HE[backend], [1.0, 1.0], max_clients=30)
    federation([model, model], 0)
    site, scales = federation.sites[0], federation.scales([model, model], 1)
    rounds = 30 if backend == "flashe" else 9
    outcome = compare(
        lambda: site.calibrate(model, round=1).to_bytes(),
        lambda: site.encrypt(model, round=1, calibration=scales).to_bytes(),
        rounds,
    )
    report.measure(f"precision-calibration-{backend}", outcome.ratio, outcome.detail)
    up, down = len(outcome.result), scales.nbytes
    whole = site.encrypt(model, round=1, calibration=scales).nbytes
    message(up)
    benchmark.extra_info.update(scales_nbytes=down, update_nbytes=whole)
    case = f"{backend}: {up / 1e3:.1f} kB up, {down / 1e3:.1f} kB down, update {whole / 1e6:.2f} MB"
    target = "precision-calibration-size"
    assert report.measure(target, *worst(target, case, max(up, down) / whole)).met


@pytest.mark.parametrize("backend", HE)
def test_max_weight(backend, trajectory, worst, benchmark, report):
    raw = trajectory(UNEVEN)
    weights = raw.task.weights

    def error(**aggregation: float) -> float:
        return raw.replay(Federation(with_bits(backend, 8), weights, **aggregation), metric=False).nmse

    right, *generous = benchmark.pedantic(
        lambda: [error(), *(error(max_weight=x * max(weights)) for x in (1, 1e3, 1e6))]
    )
    changed = max(abs(nmse / right - 1) for nmse in generous)
    benchmark.extra_info.update(nmse=right, generous=generous)
    assert report.measure(
        "precision-max-weight", *worst("precision-max-weight", f"{backend}: {right:.2e}", changed)
    ).met


def with_bits(backend: str, bits: int) -> dict[str, Any]:
    he = HE[backend]
    return {**he, "config": {**he["config"], "value_bits": bits}}
