"""What a library and its params cost: sizes that are exact, errors that are real."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from small_model import SHAPES, VALUES, random_state

import secagg as library
from secagg.errors import ConfigError
from secagg.scheme.aggregation import Aggregation
from secagg.scheme.params import CKKSParams, QuantisedParams
from secagg.setup.choices import Choice, choices, cost, header
from secagg.setup.planner import Row, recommend
from secagg.setup.speed import Seconds, measure
from secagg.wire.layout import Layout

AGGREGATION = Aggregation(max_clients=3, max_abs=1.0, max_weight=10)
CHOICES = {f"{choice.lib} {choice.name}": choice for choice in choices(AGGREGATION, 14.0)}


def test_every_library_has_choices() -> None:
    assert {name.partition(",")[0] for name in CHOICES if "CKKS" not in name} == {
        "seal BGV",
        "pyfhel BGV",
        "flashe FLASHE",
    }
    assert {choice.lib for name, choice in CHOICES.items() if "CKKS" in name} == {"tenseal", "seal", "pyfhel"}
    assert len(CHOICES) == 10


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
def test_sizes_are_exact_and_errors_real(choice: Choice, layout: Layout) -> None:
    plan = cost(choice, layout, AGGREGATION)
    keys = library.generate_keys(plan.config)
    aggregator = library.Aggregator(plan.config, keys.server)
    states = [random_state(seed) for seed in range(3)]
    for number, state in enumerate(states, 1):
        site = library.Client(plan.config, keys.client, f"site-{number}")
        update = site.encrypt(state, weight=10)
        assert update.nbytes == plan.update_nbytes
        aggregator.add(update)
    aggregate = aggregator.finish()
    assert aggregate.nbytes == plan.aggregate_nbytes
    assert plan.expansion == plan.update_nbytes / (4 * VALUES)
    mean = site.decrypt(aggregate)
    allowed = 2.0**-plan.precision + 2.0**-23  # and the rounding to float32
    for name in SHAPES:
        exact = sum(state[name].astype(np.float64) for state in states) / 3
        assert np.abs(mean[name] - exact).max() <= allowed
    # What is shown is no more than eight times what is there, where a step of quantisation is the error.
    if plan.precision < 16:
        assert max(np.abs(mean[n] - sum(s[n].astype(np.float64) for s in states) / 3).max() for n in SHAPES) > (
            2.0**-plan.precision / 8
        )


@pytest.mark.parametrize("max_weight", [1.0, 1e6])
@pytest.mark.parametrize("max_abs", [1.0, {"default": 1.0, "head.*": 0.001}])
def test_measuring_takes_any_bounds_and_number_of_sites(layout: Layout, max_abs: Any, max_weight: float) -> None:
    aggregation = Aggregation(max_clients=50, max_abs=max_abs, max_weight=max_weight)
    for choice in choices(aggregation, 14.0):
        if choice.name in ("FLASHE, 11 bits", "BGV, 16 bits", "CKKS, sums only"):
            config = cost(choice, layout, aggregation).config
            seconds = measure(config, header("aggregate", 50, config, layout))
            assert all(0 < value < math.inf for value in seconds)


@pytest.mark.parametrize("needed", [8.0, 14.0, 20.0, 24.0])
@pytest.mark.parametrize("max_abs", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("sites", [2, 30, 1000])
def test_ckks_for_sums_has_the_bits_and_is_smaller_than_claras(
    layout: Layout, sites: int, max_abs: float, needed: float
) -> None:
    aggregation = Aggregation(max_clients=sites, max_abs=max_abs)
    found = {
        (choice.lib, choice.name): cost(choice, layout, aggregation)
        for choice in choices(aggregation, needed)
        if choice.name == "CKKS, sums only"
    }
    assert len(found) == 3
    for (lib, _), plan in found.items():
        assert plan.precision >= max(needed, 16)
        params = plan.config.params.to_dict()
        assert params["seeded"] is (lib != "pyfhel")
        assert params["complex_slots"] is True
    assert found["seal", "CKKS, sums only"].config.params.block_nbytes < 102_400  # bytes of a block of Clara's


def rows(layout: Layout, needed: float) -> list[Row]:
    """What a plan compares, as if all took the same time."""
    return [
        Row(choice, "", cost(choice, layout, AGGREGATION), Seconds(1.0, 1.0)) for choice in choices(AGGREGATION, needed)
    ]


@pytest.mark.parametrize("needed", [5.0, 9.5, 14.0, 15.0, 17.0, 22.9])
def test_the_smallest_exact_one_that_fits_is_recommended(layout: Layout, needed: float) -> None:
    compared = rows(layout, needed)
    best, config, why = recommend(compared, needed)
    assert best.cost is not None
    assert config is best.cost.config
    assert best.cost.precision >= needed
    assert isinstance(config.params, QuantisedParams)
    assert why.startswith("the smallest exact one whose error fits: ")
    costs = [row.cost for row in compared if row.cost is not None and row.cost.precision >= needed]
    exact = [item.update_nbytes for item in costs if isinstance(item.config.params, QuantisedParams)]
    assert min(exact) == best.cost.update_nbytes


def test_ckks_is_recommended_where_no_exact_scheme_has_the_bits(layout: Layout) -> None:
    compared = rows(layout, 25.0)
    best, config, why = recommend(compared, 25.0)
    assert isinstance(config.params, CKKSParams)
    assert why.startswith("the smallest that fits, as no exact one does: ")
    best, _, why = recommend(compared, 60.0)
    assert best.cost is not None
    assert best.cost.precision == max(row.cost.precision for row in compared if row.cost is not None)
    assert "none has the 60.0 bits" in why


@pytest.mark.parametrize("faster", ["tenseal", "seal"])
@pytest.mark.parametrize("needed", [25.0, 60.0])
def test_of_two_of_one_size_the_faster_is_recommended(layout: Layout, faster: str, needed: float) -> None:
    compared = [
        replace(row, seconds=Seconds(0.5 if row.choice.lib == faster else 1.0, 1.0)) for row in rows(layout, needed)
    ]
    assert recommend(compared, needed)[0].choice.lib == faster


def test_a_choice_that_cannot_hold_the_sum_says_so(layout: Layout) -> None:
    with pytest.raises(ConfigError, match="lower scale_bits, max_abs or max_clients"):
        cost(CHOICES["tenseal CKKS, Clara's"], layout, Aggregation(max_clients=3, max_abs=1e30))
