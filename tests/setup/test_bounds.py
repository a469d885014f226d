"""Bounds and bits that sample updates ask for."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_model import SHAPES, VALUES

from secagg.scheme.aggregation import Aggregation
from secagg.setup.bounds import needed_bits, read_sample, suggest_max_abs
from secagg.wire.layout import Layout


@pytest.mark.parametrize(
    ("largest", "bound"), [(1.0, 2.0), (0.00803, 0.017), (0.5001, 1.1), (4.95, 9.9), (6e-7, 1.2e-6)]
)
def test_one_number_for_all(largest: float, bound: float) -> None:
    assert suggest_max_abs({"a.w": largest, "a.b": largest / 16, "zeros": 0.0}) == bound


def test_patterns_where_tensors_differ() -> None:
    largest = {
        "a.conv.w": 1.0,
        "a.conv.b": 0.5,
        "a.norm.w": 1e-3,  # a module of its own size
        "a.norm.b": 4e-3,
        "head.w": 0.9,  # a module of two sizes
        "head.b": 1e-4,
        "idle.w": 0.0,
        "odd[0].w": 1e-5,  # a name that is no pattern
    }
    found = suggest_max_abs(largest)
    assert found == {"default": 2.0, "a.norm.*": 8e-3, "head.b": 2e-4, "odd[[]0].*": 2e-5}
    aggregation = Aggregation(max_abs=found)
    bounds = dict(zip(largest, aggregation.bounds_of(tuple((name,) for name in largest)), strict=True))
    assert bounds["odd[0].w"] == 2e-5
    assert bounds["a.norm.w"] == 8e-3


names = st.lists(st.sampled_from(["a", "b", "a*", "w[0]", "é", "default"]), min_size=1, max_size=4).map(".".join)


@given(st.dictionaries(names, st.floats(1e-30, 1e30) | st.just(0.0), min_size=1))
def test_every_tensor_gets_one_number_that_suits_it(largest: dict[str, float]) -> None:
    if not any(largest.values()):
        largest["a"] = 1.0
    aggregation = Aggregation(max_abs=suggest_max_abs(largest))
    bounds = aggregation.bounds_of(tuple((name,) for name in largest))
    for value, bound in zip(largest.values(), map(Fraction, bounds), strict=True):
        if value:  # with headroom, at most 16 times too large, and up to a tenth for the two digits
            assert 2 * Fraction(value) * Fraction(1 - 2**-50) <= bound <= Fraction(352, 10) * Fraction(value)


def test_needed_bits(layout: Layout, tmp_path: Path) -> None:
    """A value of ±v everywhere lies log2(max_abs / v) below max_abs; three bits more keep the error an eighth of it."""
    for number, value in enumerate((0.25, -0.125)):
        state = {name: np.full(shape, value, np.float32) for name, shape in SHAPES.items()}
        np.savez(tmp_path / f"{number}.npz", **state, step=np.int64(3))
    one = read_sample([tmp_path / "0.npz"], layout)
    assert needed_bits(one, layout, Aggregation(max_abs=1.0)) == pytest.approx(2 + 3)
    both = read_sample([tmp_path / "0.npz", tmp_path / "1.npz"], layout)
    assert both.largest == dict.fromkeys(SHAPES, 0.25)
    rms = math.sqrt((0.25**2 + 0.125**2) / 2)
    assert needed_bits(both, layout, Aggregation(max_abs=1.0)) == pytest.approx(math.log2(1 / rms) + 3)
    patterns = {"default": 1.0, "head.weight": 0.25}
    share = 1200 / VALUES
    expected = math.log2(math.sqrt(share * 0.25**2 + (1 - share)) / 0.25) + 3
    assert needed_bits(one, layout, Aggregation(max_abs=patterns)) == pytest.approx(expected)
    assert needed_bits(None, layout, Aggregation()) == 14
