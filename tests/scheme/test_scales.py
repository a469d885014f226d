"""Scales: which half-octave a magnitude is in, and what many sites' counts make of a round, and of the next."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secagg.errors import FormatError
from secagg.scheme.scales import BINS, LOWEST, UNKNOWN, Scales, bin_of, bound_of, one_hot

SMALLEST, LARGEST = bound_of(0), bound_of(BINS - 1)
ROOT = math.sqrt(2)
EPS = sys.float_info.epsilon
SUBNORMAL = math.ulp(0.0)


def counts_of(*rows: dict[int, int]) -> np.ndarray:
    """Counts of bins, a row a tensor."""
    counts = np.zeros((len(rows), BINS))
    for row, found in zip(counts, rows, strict=True):
        for place, sites in found.items():
            row[place] = sites
    return counts


# Bins and bounds.


def test_bounds_are_the_powers_of_the_root_of_two():
    assert pytest.approx(2.0**-51.5, rel=EPS) == SMALLEST
    assert LARGEST == 2.0**44
    for place in range(BINS):
        exponent = place + LOWEST
        if exponent % 2 == 0:
            assert bound_of(place) == 2.0 ** (exponent // 2)
        else:
            assert bound_of(place) == pytest.approx(2.0 ** (exponent / 2), rel=EPS)


@pytest.mark.parametrize("place", range(1, BINS - 1))
def test_a_bound_is_the_last_value_of_its_bin(place):
    """To the last place: what is one ulp above is in the next bin."""
    bound = bound_of(place)
    assert bin_of(bound) == place
    assert bin_of(math.nextafter(bound, 0)) == place
    assert bin_of(math.nextafter(bound, math.inf)) == place + 1


@pytest.mark.parametrize("exponent", range(-51, 45))
def test_a_power_of_two_is_its_own_bound(exponent):
    assert bound_of(bin_of(2.0**exponent)) == 2.0**exponent


@pytest.mark.parametrize(
    "value",
    [SUBNORMAL, 2 * SUBNORMAL, sys.float_info.min, math.nextafter(sys.float_info.min, 0), 1e-300, 2.0**-60, SMALLEST],
)
def test_what_is_too_small_is_in_the_first_bin(value):
    assert bin_of(value) == 0


def test_the_first_bin_ends_where_the_second_begins():
    assert bin_of(math.nextafter(SMALLEST, 1)) == 1


@pytest.mark.parametrize("value", [LARGEST, math.nextafter(LARGEST, math.inf), 1e300, sys.float_info.max])
def test_what_is_too_large_is_in_the_last_bin(value):
    assert bin_of(value) == BINS - 1


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_zero_has_no_bin(zero):
    assert bin_of(zero) is None


@given(st.floats(SMALLEST, LARGEST))
def test_a_bound_is_above_its_values_by_less_than_the_root_of_two(value):
    bound = bound_of(bin_of(value))
    if value > SMALLEST:
        assert value <= bound < ROOT * value * (1 + EPS)


@given(st.floats(0, exclude_min=True, allow_infinity=False), st.floats(0, exclude_min=True, allow_infinity=False))
def test_bins_have_the_order_of_values(one, other):
    if one <= other:
        assert bin_of(one) <= bin_of(other)


def test_a_site_counts_one_for_each_tensor_that_is_not_zero():
    counts = one_hot([1.0, 0.0, 1e-300, 1e300, 1.5])
    assert counts.shape == (5, BINS)
    assert counts.sum(axis=1).tolist() == [1, 0, 1, 1, 1]
    assert [int(row.argmax()) for row in counts[[0, 2, 3, 4]]] == [-LOWEST, 0, BINS - 1, -LOWEST + 2]
    assert one_hot([]).shape == (0, BINS)


# What a round measures.


def test_the_highest_bin_that_is_not_empty_is_the_bound():
    """However few have counted there, and however many below."""
    assert Scales.measured(counts_of({3: 9999, 7: 1}, {0: 2}, {BINS - 1: 1, 0: 4})).bins == (7, 0, BINS - 1)


def test_a_tensor_that_is_zero_everywhere_has_the_median_of_the_others():
    """The lower one of two, so that it is a bin. Empty tensors are zero, too."""
    assert Scales.measured(counts_of({10: 1}, {}, {20: 1}, {90: 1})).bins == (10, 20, 20, 90)
    assert Scales.measured(counts_of({10: 1}, {}, {20: 1}, {})).bins == (10, 10, 20, 10)


def test_where_all_is_zero_any_scale_will_do():
    assert Scales.measured(counts_of({}, {})).bounds == [1.0, 1.0]
    assert Scales.measured(np.zeros((0, BINS))).bins == ()


@given(st.lists(st.lists(st.floats(0, 1e20), min_size=3, max_size=3), min_size=1, max_size=8))
def test_no_value_of_any_site_is_above_what_was_measured(sites):
    """But for what saturates."""
    scales = Scales.measured(sum(one_hot(largest) for largest in sites))
    for tensor, bound in enumerate(scales.bounds):
        assert max(largest[tensor] for largest in sites) <= bound or bound == LARGEST


# What follows from one round for the next.


def test_nothing_is_known_before_the_first_round():
    scales = Scales.unknown(3)
    assert not scales.known
    assert scales.bins == (UNKNOWN,) * 3
    assert scales.bounds == [0.0] * 3
    assert Scales((5,)).known


def test_the_next_round_lies_a_half_octave_above_what_was_measured():
    assert Scales.unknown(2).following(counts_of({50: 1}, {60: 3})).bins == (51, 61)
    assert Scales((40, 40)).following(counts_of({50: 1}, {60: 3})).bins == (51, 61)


def test_scales_fall_by_one_octave_a_round():
    scales, falls = Scales((60, 60)), []
    for _ in range(6):
        scales = scales.following(counts_of({52: 1}, {59: 1}))
        falls.append(scales.bins)
    assert falls == [(58, 60), (56, 60), (54, 60), (53, 60), (53, 60), (53, 60)]


def test_small_tensors_have_room_to_grow_and_fall_at_once():
    scales = Scales((60, 60, BINS - 2)).following(counts_of({30: 1}, {30: 1}, {BINS - 2: 1}), small={1, 2})
    assert scales.bins == (58, 34, BINS - 1)


def test_what_follows_stays_in_range():
    assert Scales((BINS - 1,)).following(counts_of({BINS - 1: 1})).bins == (BINS - 1,)
    assert Scales((0,)).following(counts_of({0: 1})).bins == (1,)


def test_a_tensor_that_is_zero_goes_to_the_median_and_no_faster_than_others():
    assert Scales((80, 60, 60)).following(counts_of({}, {60: 1}, {60: 1})).bins == (78, 61, 61)
    assert Scales((20, 60, 60)).following(counts_of({}, {60: 1}, {60: 1})).bins == (61, 61, 61)


def test_scales_of_another_number_of_tensors_do_not_follow():
    with pytest.raises(ValueError):
        Scales((5, 5)).following(counts_of({4: 1}))


# As bytes.


@pytest.mark.parametrize("bins", [(), (0,), (BINS - 1, 0, 7), (UNKNOWN, UNKNOWN)])
def test_bytes_and_back(bins):
    scales = Scales(bins)
    assert len(scales.to_bytes()) == len(bins)
    assert Scales.from_bytes(scales.to_bytes()) == scales


@pytest.mark.parametrize("blob", [b"\xff", bytes([UNKNOWN + 1]), bytes([0, UNKNOWN]), bytes([UNKNOWN, UNKNOWN, 5])])
def test_bytes_that_are_no_scales(blob):
    """Beyond the last bin; or something is known of one tensor, and nothing of another."""
    with pytest.raises(FormatError, match="stored scales have bins that are none"):
        Scales.from_bytes(blob)
