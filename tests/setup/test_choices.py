"""What a library and its params cost: sizes that are exact, errors that are real."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from small_model import VALUES, random_state

import secagg as library
from secagg.errors import BackendUnavailableError, ConfigError
from secagg.scheme.params import BGVParams, CKKSParams, QuantisedParams
from secagg.setup.choices import CREST, TYPICAL, Choice, choices, cost, expected_loss
from secagg.setup.planner import Row, recommend
from secagg.setup.sizes import header
from secagg.setup.speed import Seconds, measure
from secagg.wire.layout import Layout

SITES = 3
CHOICES = {f"{choice.lib} {choice.name}": choice for choice in choices(SITES)}


def test_every_library_has_choices() -> None:
    assert [name for name in CHOICES if "CKKS" not in name] == [
        "seal BGV, 6 bits",
        "seal BGV, 8 bits",
        "seal BGV, 12 bits",
        "pyfhel BGV, 6 bits",
        "flashe FLASHE, 6 bits",
        "flashe FLASHE, 8 bits",
        "flashe FLASHE, 12 bits",
    ]
    assert [choice.lib for name, choice in CHOICES.items() if "CKKS" in name] == [
        "tenseal",
        "seal",
        "tenseal",
        "seal",
        "pyfhel",
    ]


def test_bits_are_planned_for_the_sites() -> None:
    """More bits are choices only where they are more than those that cost nothing."""
    names = {sites: [choice.name for choice in choices(sites) if choice.lib == "flashe"] for sites in (30, 100)}
    assert names == {
        30: ["FLASHE, 7 bits", "FLASHE, 8 bits", "FLASHE, 12 bits"],
        100: ["FLASHE, 9 bits", "FLASHE, 12 bits"],
    }


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
def test_sizes_are_exact_and_errors_real(choice: Choice, layout: Layout) -> None:
    plan = cost(choice, layout, SITES)
    exact = isinstance(plan.config.params, QuantisedParams)
    keys = library.generate_keys(plan.config)
    aggregator = library.Aggregator(plan.config, keys.server)
    states = [random_state(seed) for seed in range(SITES)]
    sites = [library.Client(plan.config, keys.client, f"site-{number}") for number in range(1, SITES + 1)]
    sent, scales = [], None
    if exact:
        calibrations = library.Aggregator(plan.config, keys.server, kind="calibration")
        for site, state in zip(sites, states, strict=True):
            sent.append(site.calibrate(state).nbytes)
            calibrations.add(site.calibrate(state))
        scales = calibrations.finish()
    for site, state in zip(sites, states, strict=True):
        update = site.encrypt(state, calibration=scales)
        assert update.nbytes + (sent.pop() if exact else 0) == plan.update_nbytes
        aggregator.add(update)
    aggregate = aggregator.finish()
    assert aggregate.nbytes + (scales.nbytes if scales else 0) == plan.aggregate_nbytes
    assert plan.expansion == plan.update_nbytes / (4 * VALUES)
    mean = site.decrypt(aggregate)
    name, each = "head.weight", [state["head.weight"].astype(np.float64) for state in states]
    error = np.square(mean[name] - sum(each) / SITES)
    if exact:  # the bound is 1 here; the mean of three errors has a third of their energy
        assert error.mean() * SITES == pytest.approx(plan.loss / CREST**2, rel=0.1)
    else:
        assert error.max() <= plan.loss * (TYPICAL * 8) ** 2 + 2.0**-46  # and the rounding to float32


def test_the_expected_loss() -> None:
    """What the study measured of updates of four networks lies around it: 5e-4 … 2e-2 at 6 bits, 3e-5 … 1e-3 at 8."""
    assert 2e-3 < expected_loss(6) < 1e-2
    assert 1e-4 < expected_loss(8) < 7e-4
    assert expected_loss(7) == pytest.approx(expected_loss(6) / 4, rel=0.1)


MEASURED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "auto": ({"preset": "smallest"}, {}),
    "auto, BGV": ({"preset": "exact"}, {"max_weight": 1e6}),
    "previous": ({"preset": "exact"}, {"precision": "previous"}),
    "fixed": ({"preset": "smallest"}, {"max_abs": 1.0, "max_weight": 1e6}),
    "fixed, by name": ({"preset": "exact"}, {"max_abs": {"default": 1.0, "head.*": 0.001}}),
    "CKKS": ({"preset": "clara"}, {"max_abs": {"default": 1.0, "head.*": 0.001}, "max_weight": 1e6}),
}


@pytest.mark.parametrize(("he", "aggregation"), MEASURED.values(), ids=MEASURED)
def test_measuring_takes_any_precision_and_number_of_sites(
    layout: Layout, he: dict[str, Any], aggregation: dict[str, Any]
) -> None:
    config = library.Config.from_dict({"he": he, "aggregation": {"max_clients": 50, **aggregation}})
    seconds = measure(config, header("aggregate", 50, config, layout))
    assert all(0 < value < math.inf for value in seconds)


@pytest.mark.parametrize("sites", [2, 30, 1000])
def test_ckks_for_sums_has_the_bits_and_is_smaller_than_claras(layout: Layout, sites: int) -> None:
    found = {choice.lib: cost(choice, layout, sites) for choice in choices(sites) if choice.name == "CKKS, sums only"}
    assert set(found) == {"tenseal", "seal", "pyfhel"}
    for lib, plan in found.items():
        assert plan.loss <= (2.0**-16 / TYPICAL) ** 2
        params = plan.config.params.to_dict()
        assert params["seeded"] is (lib != "pyfhel")
        assert params["complex_slots"] is True
    assert found["seal"].config.params.block_nbytes < 102_400  # bytes of a block of Clara's


def rows(layout: Layout) -> list[Row]:
    """What a plan compares, as if all took the same time."""
    return [Row(choice, "", cost(choice, layout, SITES), Seconds(1.0, 1.0)) for choice in choices(SITES)]


def unusable(row: Row) -> Row:
    return replace(row, problem="it is not installed")


def test_the_smallest_exact_one_is_recommended(layout: Layout) -> None:
    compared = rows(layout)
    best, config, why = recommend(compared)
    assert best.cost is not None
    assert config is best.cost.config
    assert config.aggregation.to_dict() == {
        "min_clients": 3,
        "max_clients": 3,
        "precision": "auto",
        "max_abs": None,
        "max_weight": None,
    }
    assert why.startswith("the smallest exact one; each round leaves 0.033 % of a typical update to the next")
    assert config.params.to_dict()["value_bits"] == 8  # of the small model, one block at 6 and at 8 bits
    costs = [row.cost for row in compared if row.cost is not None]
    exact = [item for item in costs if isinstance(item.config.params, QuantisedParams)]
    assert best.cost.update_nbytes == min(item.update_nbytes for item in exact)
    lattice = [unusable(row) if row.choice.lib == "flashe" else row for row in compared]
    assert isinstance(recommend(lattice)[1].params, BGVParams)


def test_ckks_is_recommended_where_no_exact_scheme_can_be_used(layout: Layout) -> None:
    compared = [row if "CKKS" in row.choice.name else unusable(row) for row in rows(layout)]
    best, config, why = recommend(compared)
    assert isinstance(config.params, CKKSParams)
    assert best.choice.name == "CKKS, sums only"
    assert why == "the smallest, as no exact one can be used"
    with pytest.raises(BackendUnavailableError, match="no choice is left: it is not installed"):
        recommend([unusable(row) for row in compared])


@pytest.mark.parametrize("faster", ["tenseal", "seal"])
def test_of_two_of_one_size_the_faster_is_recommended(layout: Layout, faster: str) -> None:
    compared = [
        replace(row, seconds=Seconds(0.5 if row.choice.lib == faster else 1.0, 1.0))
        for row in rows(layout)
        if "CKKS" in row.choice.name
    ]
    assert recommend(compared)[0].choice.lib == faster


def test_a_choice_that_cannot_hold_the_sum_says_so(layout: Layout) -> None:
    clara = CHOICES["seal CKKS, Clara's"]
    tight = replace(clara, he_config={**clara.he_config, "scale_bits": 90})
    with pytest.raises(ConfigError, match="lower scale_bits, max_abs or max_clients"):
        cost(tight, layout, 10_000)
