"""What a plan says of sample updates is what a round of such updates is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_model import SHAPES, random_state

import secagg as library
from secagg.cli.plan_report import check_words
from secagg.scheme.report import MAX_LOSS, PrecisionReport, TensorReport
from secagg.setup.sample import bits_for, check_sample, read_largest
from secagg.wire.layout import Layout


def config_of(bits: int | None = None, lib: str = "flashe") -> library.Config:
    block: dict[str, Any] = {"scheme": "FLASHE" if lib == "flashe" else "BGV"}
    if bits is not None:
        block["value_bits"] = bits
    return library.Config.from_dict({"he": {"lib": lib, "config": block}, "aggregation": {"max_clients": 3}})


def update(seed: int) -> dict[str, Any]:
    """Tensors of very different sizes and shapes of distribution, one of them zero."""
    random = np.random.default_rng(seed)
    state = {name: (random.standard_t(4, shape) * 1e-3).astype(np.float32) for name, shape in SHAPES.items()}
    state["enc.conv.bias"] *= 1e-4
    state["head.weight"] *= 300.0
    state["scale"] = np.float32(0)
    return state


def save(folder: Path, *states: dict[str, Any]) -> list[Path]:
    paths = [folder / f"{number}.npz" for number in range(len(states))]
    for path, state in zip(paths, states, strict=True):
        np.savez(path, **state, steps=np.int64(3))
    return paths


@pytest.mark.parametrize(("lib", "bits"), [("flashe", None), ("flashe", 3), ("flashe", 12), ("seal", None)])
def test_the_check_is_the_report_of_a_round(tmp_path: Path, layout: Layout, lib: str, bits: int | None) -> None:
    """Of sites that send the samples, weight 1: bits, losses and residuals are the means of theirs."""
    config, states = config_of(bits, lib), [update(1), update(2)]
    keys = library.generate_keys(config)
    sites = [library.Client(config, keys.client, name) for name in ("a", "b")]
    aggregator = library.Aggregator(config, keys.server, kind="calibration")
    for site, state in zip(sites, states, strict=True):
        aggregator.add(site.calibrate(state))
    scales = aggregator.finish()
    reports = []
    for site, state in zip(sites, states, strict=True):
        site.encrypt(state, calibration=scales)
        assert site.report is not None
        reports.append({item.name: item for item in site.report.tensors})
    found = check_sample(save(tmp_path, *states), layout, config)
    names = [item.name for item in found.tensors]
    assert sorted(names) == sorted(SHAPES)
    for item, *each in zip(found.tensors, *([report[name] for name in names] for report in reports), strict=True):
        assert {other.step for other in each} == {item.step}
        assert item.signal**2 == pytest.approx(np.mean([other.signal**2 for other in each]))
        assert item.residual**2 == pytest.approx(np.mean([other.residual**2 for other in each]), rel=1e-5, abs=1e-30)
        energies = [other.signal**2 * other.values for other in each]
        expected = sum(other.residual**2 for other in each) / sum(energies) if any(energies) else 0
        assert item.loss == pytest.approx(expected, rel=1e-5)
        assert item.clipped == 0
    assert found.tensors[names.index("scale")].loss == 0


def test_the_largest_of_all_samples(tmp_path: Path, layout: Layout) -> None:
    states = [random_state(seed, largest) for seed, largest in ((1, 0.5), (2, 0.25))]
    found = read_largest(save(tmp_path, *states), layout)
    assert found == {name: max(float(np.abs(state[name]).max()) for state in states) for name in SHAPES}


@pytest.mark.parametrize("loss", [1e-9, 0.0099, 0.011, 0.04, 0.041, 0.2, 0.9])
def test_bits_that_would_keep_99_percent(loss: float) -> None:
    """A bit more halves the step, and quarters what it loses."""
    report = PrecisionReport(
        0, (TensorReport("w", 10, 1.0, 1.0, 0, 0.0, loss), TensorReport("z", 1, 0.0, 1.0, 0, 0, 0))
    )
    more = bits_for(report, 6) - 6
    assert loss / 4**more <= MAX_LOSS * (1 + 1e-12)
    assert more == 0 or loss / 4 ** (more - 1) > MAX_LOSS
    assert bits_for(PrecisionReport(0, ()), 6) == 6


def test_the_bits_that_are_advised_are_enough(tmp_path: Path, layout: Layout) -> None:
    paths = save(tmp_path, update(5))
    report = check_sample(paths, layout, config_of(4))
    assert any(item.loss > MAX_LOSS for item in report.tensors)
    better = check_sample(paths, layout, config_of(bits_for(report, 4)))
    assert max(item.loss for item in better.tensors) <= 1.2 * MAX_LOSS
    words = check_words(report, config_of(4))
    assert len(words) == 2
    assert "of 'enc.conv.weight' " in words[0] or "of 'head.weight' " in words[0]
    assert f"value_bits: {bits_for(report, 4)} in he.config leaves less" in words[1]
    assert check_words(check_sample(paths, layout, config_of(16)), config_of(16))[0].endswith("no tensor more than 1 %")


def test_a_tensor_that_no_bits_save(layout: Layout) -> None:
    report = PrecisionReport(0, (TensorReport("w", 10, 1e-9, 1.0, 0, 0.0, 1.0),))
    assert "CKKS leaves less" in check_words(report, config_of(23))[1]
