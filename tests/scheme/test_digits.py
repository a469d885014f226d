"""Digits: whole numbers and small tensors in several lanes, exact for as many sites as can be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secagg.scheme.aggregation import MAX_CLIENTS
from secagg.scheme.digits import (
    MIN_LEVELS,
    Digits,
    join_balanced,
    lanes_a_value,
    small_tensors,
    split_balanced,
)

LIMITS = {bits: 2 ** (bits - 1) - 1 for bits in range(3, 25)}
limits = pytest.mark.parametrize("limit", LIMITS.values(), ids=map(str, LIMITS))


# Numbers.


@limits
@pytest.mark.parametrize("bits", [1, 8, 40, 80])
def test_numbers_and_back(limit, bits):
    digits = Digits(bits, limit)
    assert digits.largest >= 2**bits - 1
    assert digits.count * (limit.bit_length() - 1) < bits + limit.bit_length()
    for number in (0, 1, 2**bits - 1, 2 ** (bits - 1), digits.largest):
        split = digits.split(number)
        assert len(split) == digits.count
        assert all(0 <= digit <= limit for digit in split)
        assert digits.join(split) == number


@limits
def test_sums_of_numbers(limit):
    """Of the largest, at 10,000 sites: exact, though it has more bits than a float."""
    digits = Digits(80, limit)
    sums = [float(digit * MAX_CLIENTS) for digit in digits.split(digits.largest)]
    assert digits.join(sums) == digits.largest * MAX_CLIENTS


@given(st.integers(0, 2**80 - 1), st.integers(0, 2**80 - 1), st.sampled_from(list(LIMITS.values())))
def test_digits_add_like_numbers(one, other, limit):
    digits = Digits(80, limit)
    sums = [a + b for a, b in zip(digits.split(one), digits.split(other), strict=True)]
    assert digits.join(sums) == one + other


# Balanced digits of small tensors.


def levels(limit):
    """The largest magnitude of a value in so many lanes as it takes."""
    return ((2 * limit + 1) ** lanes_a_value(limit) - 1) // 2


@limits
def test_a_value_takes_as_few_lanes_as_have_20_bits(limit):
    lanes = lanes_a_value(limit)
    assert (2 * limit + 1) ** lanes >= MIN_LEVELS
    assert lanes == 1 or (2 * limit + 1) ** (lanes - 1) < MIN_LEVELS


def test_lanes_by_bits():
    assert {bits: lanes_a_value(limit) for bits, limit in LIMITS.items()} == {
        3: 8,
        4: 6,
        5: 5,
        6: 4,
        **dict.fromkeys(range(7, 11), 3),
        **dict.fromkeys(range(11, 20), 2),
        **dict.fromkeys(range(20, 25), 1),
    }


def values_of(limit):
    """Extreme, ordinary and halfway values: where digits carry."""
    top, base = levels(limit), 2 * limit + 1
    special = [0, 1, limit, limit + 1, base, base * limit, base * limit + limit, top - 1, top]
    drawn = np.random.default_rng(limit).integers(-top, top, 500, endpoint=True)
    return np.array([*special, *(-value for value in special), *drawn], dtype=np.float64).clip(-top, top)


@limits
def test_values_and_back(limit):
    values, lanes = values_of(limit), lanes_a_value(limit)
    digits = split_balanced(values.copy(), limit, lanes)
    assert len(digits) == lanes
    for array in digits:
        assert array.dtype == np.float32
        assert (np.abs(array) <= limit).all()
        assert (array == np.rint(array)).all()
    np.testing.assert_array_equal(join_balanced([array.astype(np.float64) for array in digits], limit), values)


@limits
def test_sums_of_values(limit):
    """10,000 sites at the extremes, and anywhere between them: no place is lost."""
    values, lanes = values_of(limit), lanes_a_value(limit)
    digits = [array.astype(np.float64) for array in split_balanced(values.copy(), limit, lanes)]
    np.testing.assert_array_equal(join_balanced([array * MAX_CLIENTS for array in digits], limit), values * MAX_CLIENTS)
    drawn = np.random.default_rng(0).integers(-levels(limit), levels(limit), (100, 50), endpoint=True)
    sums = [np.zeros(50) for _ in range(lanes)]
    for row in drawn:
        for total, array in zip(sums, split_balanced(row.astype(np.float64), limit, lanes), strict=True):
            total += array
    np.testing.assert_array_equal(join_balanced(sums, limit), drawn.sum(axis=0))


@limits
def test_no_values(limit):
    digits = split_balanced(np.empty(0), limit, lanes_a_value(limit))
    assert join_balanced([array.astype(np.float64) for array in digits], limit).size == 0


# Which tensors are small.


@pytest.mark.parametrize(
    ("shapes", "small"),
    [
        ([], []),
        ([()], [False]),
        ([(10,)], [False]),  # all there is
        ([(0,)], [True]),
        ([(0,), (10,)], [True, False]),
        ([(10, 10), (5,)], [False, True]),
        ([(95,), (5,)], [False, True]),  # 5 of 100: just as many as may be
        ([(94,), (5,)], [False, False]),
        ([(10, 10), ()], [False, True]),
        ([(10, 0), (0,), ()], [False, True, False]),
        ([(1000, 1), (20,), (30,), (1, 1)], [False, True, True, False]),  # of two dimensions, however small
        ([(1000, 1), (30,), (20,), (10,)], [False, False, True, True]),  # the smallest first
        ([(1000, 1), (40,), (20,), (20,)], [False, False, True, True]),
        ([(1000, 1), (30,), (30,), (30,)], [False, True, False, False]),  # of equal ones the first
    ],
)
def test_small_tensors(shapes, small):
    assert small_tensors(shapes) == small


@given(
    st.lists(
        st.one_of(st.just(()), st.tuples(st.integers(0, 300)), st.tuples(st.integers(0, 60), st.integers(0, 60))),
        max_size=12,
    )
)
def test_small_tensors_are_few_and_flat_and_the_smallest(shapes):
    chosen = small_tensors(shapes)
    sizes = [int(np.prod(shape)) for shape in shapes]
    flat = [len(shape) <= 1 for shape in shapes]
    taken = [size for size, small in zip(sizes, chosen, strict=True) if small]
    left = [size for size, small, one in zip(sizes, chosen, flat, strict=True) if one and not small]
    assert not any(small and not one for small, one in zip(chosen, flat, strict=True))
    assert 20 * sum(taken) <= sum(sizes)
    assert not left or max(taken, default=0) <= min(left)
    assert not left or 20 * (sum(taken) + min(left)) > sum(sizes)
