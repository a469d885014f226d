"""Rounding that loses much is told once, with numbers that are right and a remedy that helps."""

from __future__ import annotations

import warnings
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from federation import TINY, Federation, federate

import secagg
from secagg.errors import PrecisionWarning
from secagg.scheme.report import MAX_LOSS

VARIANTS = ["seal-BGV", "pyfhel-BGV", "flashe"]
SHAPE = (40, 50)


def gaussian(seed: int, deviation: float, shape: tuple[int, ...] = SHAPE) -> np.ndarray[Any, Any]:
    return (np.random.default_rng(seed).normal(size=shape) * deviation).astype(np.float32)


def calibrated(federation: Federation, sites: list[secagg.Client], states: list[dict[str, Any]]) -> secagg.Update:
    aggregator = secagg.Aggregator(federation.config, federation.keys.server, kind="calibration")
    for site, state in zip(sites, states, strict=True):
        aggregator.add(site.calibrate(state))
    return aggregator.finish()


def mean_of(federation: Federation, site: secagg.Client, state: dict[str, Any]) -> dict[str, Any]:
    """What two sites of this state get, one of which is not asked how precise it was."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PrecisionWarning)
        other = federation.site("other").encrypt(state)
        aggregator = federation.aggregator()
        aggregator.add(other)
        aggregator.add(site.encrypt(state))
    return site.decrypt(aggregator.finish())


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_update_below_the_step_is_told_once(variant: str) -> None:
    """The numbers of a README of old: `max_abs` 8 at 16 bits, and an update of Adam at 1e-4."""
    federation = federate(variant, {"value_bits": 16}, max_abs=8.0)
    site = federation.site()
    state = {"small": gaussian(0, 1.7e-4), "large": gaussian(1, 0.5), "smaller": gaussian(2, 1e-5)}
    with pytest.warns(PrecisionWarning) as caught:
        site.encrypt(state)
    (warning,) = caught
    assert warning.filename == __file__
    text = str(warning.message)
    report = {item.name: item for item in site.report.tensors} if site.report else {}
    assert f"rounding loses {100 * report['smaller'].loss:.0f} % of the energy of 'smaller'" in text
    assert "and more than 1 % of 1 other tensors" in text
    assert "typically 1e-05, and a step is 0.00024" in text
    assert text.endswith(
        "Set error_feedback: true in he.config, or more than value_bits: 16; or leave out aggregation.max_abs, and "
        "each round measures how large values are"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        site.encrypt(state, round=1)  # once a client
        site.encrypt_to(BytesIO(), state, round=2)
    with pytest.warns(PrecisionWarning):
        federation.site().encrypt(state)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("deviation", [2.5, 1.0, 0.3, 0.05])
def test_the_loss_is_that_of_what_arrives(deviation: float, rounding: str) -> None:
    federation = federate("flashe", {"value_bits": 8, "rounding": rounding}, max_abs=127.0)  # steps of 1
    state = {"w": gaussian(0, deviation, (400, 500))}
    site = federation.site()
    with pytest.warns(PrecisionWarning):
        site.encrypt(state)
    assert site.report is not None
    errors = mean_of(federation, site, state)["w"].astype(np.float64) - state["w"]
    measured = float(np.square(errors).sum() / np.square(state["w"].astype(np.float64)).sum())
    # The mean of two independent roundings has half of their variance.
    assert site.report.tensors[0].loss == pytest.approx(measured * (2 if rounding == "stochastic" else 1), rel=0.1)


QUIET = {
    "sane numbers": ({"value_bits": 8}, {"w": gaussian(0, 10.0)}),
    "feedback": ({"value_bits": 8, "error_feedback": True}, {"w": gaussian(0, 0.01)}),
    "zeros": ({"value_bits": 8}, {"w": np.zeros(SHAPE, np.float32)}),
    "sparse": ({"value_bits": 8}, {"w": np.eye(*SHAPE, dtype=np.float32) * 10}),
    "empty": ({"value_bits": 8}, {"w": np.zeros((0, 3)), "v": gaussian(0, 10.0)}),
}


@pytest.mark.parametrize(("params", "state"), QUIET.values(), ids=QUIET)
def test_nothing_is_told_where_nothing_is_lost(params: dict[str, Any], state: dict[str, Any]) -> None:
    site = federate("flashe", {"rounding": "nearest", **params}, max_abs=127.0).site()
    with warnings.catch_warnings():
        warnings.simplefilter("error", PrecisionWarning)
        site.encrypt(state)
    assert site.report is not None
    assert (site.report.overall.loss <= MAX_LOSS) is ("error_feedback" not in params)


def test_nothing_is_told_of_ckks() -> None:
    site = federate("tenseal", TINY).site()
    with warnings.catch_warnings():
        warnings.simplefilter("error", PrecisionWarning)
        site.encrypt({"w": gaussian(0, 1e-9)})
    assert site.report is None


def test_with_measured_scales() -> None:
    """Three bits, and feedback turned off: the scales are right, and a step is a third of the largest value."""
    federation = federate("flashe", {"value_bits": 3, "error_feedback": False})
    states = [{"w": gaussian(seed, 1e-3)} for seed in (0, 1)]
    sites = federation.sites(2)
    scales = calibrated(federation, sites, states)
    with pytest.warns(PrecisionWarning, match=r"or more than value_bits: 3$"):
        sites[0].encrypt(states[0], calibration=scales)
    federation = federate("flashe", {"value_bits": 9, "error_feedback": False})
    sites = federation.sites(2)
    scales = calibrated(federation, sites, states)
    sites[0].encrypt(states[0], calibration=scales)
    assert sites[0].report is not None
    assert 0 < sites[0].report.overall.loss < MAX_LOSS


def test_with_feedback_the_loss_is_that_of_the_residual() -> None:
    federation = federate("flashe", {"value_bits": 4})
    states = [{"w": gaussian(seed, 1e-3), "b": gaussian(seed, 1.0)[0]} for seed in (0, 1)]
    sites = federation.sites(2)
    sites[0].encrypt(states[0], calibration=calibrated(federation, sites, states))
    assert sites[0].report is not None
    for item in sites[0].report.tensors:
        energy = np.square(states[0][item.name].astype(np.float64)).sum()
        assert item.loss == pytest.approx(item.residual**2 / energy)
        assert item.signal == pytest.approx(np.sqrt(energy / states[0][item.name].size))
    loss = {item.name: item.loss for item in sites[0].report.tensors}
    assert loss["b"] < 1e-9  # it has several lanes
    assert loss["w"] > MAX_LOSS


def test_an_update_that_only_measures_has_no_report() -> None:
    site = federate("flashe", {"value_bits": 6}, precision="previous").site()
    site.encrypt({"w": gaussian(0, 1e-3)})
    assert site.report is None
    assert site.clipped == 0


def test_the_report_comes_back_with_the_carry() -> None:
    federation = federate("flashe", {"value_bits": 6, "error_feedback": True}, max_abs=1.0)
    site, fresh = federation.sites(1)[0], federation.site()
    site.encrypt({"w": gaussian(0, 0.1)})
    fresh.restore_carry(site.carry())
    assert fresh.report == site.report
    assert fresh.carry() == site.carry()
    fresh.restore_carry(b"")
    assert fresh.report is None


@pytest.mark.parametrize("value_bits", [6, 9, 10])
def test_what_is_just_the_bound_is_not_clipped(value_bits: int) -> None:
    """Though the quotient of bound and step, rounded as it is, may be above the largest whole number."""
    params = {"value_bits": value_bits, "error_feedback": False}
    federation, state = federate("flashe", params), {"w": np.ones((40, 5), np.float32), "b": np.ones(9, np.float32)}
    sites = federation.sites(2)
    scales = calibrated(federation, sites, [state, state])
    sites[0].encrypt(state, calibration=scales)
    assert sites[0].clipped == 0
