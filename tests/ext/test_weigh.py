"""How large tensors are: against plain Python, one implementation against the other, and wrong arguments."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lane_kernels import SLOTS, TENSOR, cast, doubles, rest_seeds, tensors

import secagg_ext._cython as compiled
import secagg_ext._numpy as plain

WRONG_ARRAYS = [
    pytest.param(lambda a: a.tolist(), TypeError, id="a list"),
    pytest.param(lambda a: a.astype(a.dtype.newbyteorder()), TypeError, id="other byte order"),
    pytest.param(lambda a: a.astype(np.int64), TypeError, id="integers"),
    pytest.param(lambda a: a.astype(object), TypeError, id="objects"),
    pytest.param(lambda a: a.astype(np.complex64), TypeError, id="complex"),
    pytest.param(lambda a: a.reshape(-1, 1), ValueError, id="2-D"),
    pytest.param(lambda a: np.repeat(a, 2)[::2], ValueError, id="strided"),
    pytest.param(lambda a: a[::-1], ValueError, id="reversed"),
    pytest.param(lambda a: np.zeros(a.nbytes + 1, np.uint8)[1:].view(a.dtype), ValueError, id="unaligned"),
]


def rest_of(source, seed):
    return None if seed is None else np.random.default_rng(seed).standard_normal(source.size).astype(np.float32)


@settings(deadline=None)
@given(
    source=tensors().filter(len).map(lambda made: made[0]),
    factor=st.sampled_from([1.0, 0.0, -0.5, 1e300]) | st.floats(allow_nan=False, allow_infinity=False),
    rest=rest_seeds,
)
def test_both_weigh_alike(source, factor, rest):
    """The largest to the bit; the energy but for the order of its sum, which both take of the same squares."""
    residual = rest_of(source, rest)
    (largest, energy), (same, other) = (ext.weigh(source, factor, residual) for ext in (compiled, plain))
    np.testing.assert_array_equal(largest, same)
    np.testing.assert_allclose(energy, other, rtol=source.size * 2.0**-52)
    assert math.isnan(largest) == math.isnan(energy)


@pytest.mark.parametrize("dtype", TENSOR)
@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, SLOTS - 1, SLOTS, SLOTS + 1, 1023, 1024, 1025, 5000])
@pytest.mark.parametrize("rest", [None, 3])
def test_sizes(ext, dtype, size, rest):
    source = cast(np.random.default_rng(size).standard_normal(size), dtype)
    residual = rest_of(source, rest)
    y = [float(x) * 0.75 + (0.0 if residual is None else float(residual[i])) for i, x in enumerate(doubles(source))]
    largest, energy = ext.weigh(source, 0.75, residual)
    assert type(largest) is type(energy) is float
    assert largest == max(map(abs, y), default=0.0)
    assert energy == pytest.approx(math.fsum(each * each for each in y), rel=size * 2.0**-53, abs=0)


@pytest.mark.parametrize("position", [0, 1, 31, 32, 1023, 1024, 2080, 2099])
@pytest.mark.parametrize("dtype", TENSOR)
def test_the_largest_is_found_wherever_it_is(ext, dtype, position):
    numbers = np.full(2100, 0.5)
    numbers[position] = -2.0
    assert ext.weigh(cast(numbers, dtype), 1.0) == (2.0, 2099 / 4 + 4)
    residual = np.zeros(2100, np.float32)
    residual[position] = 5
    assert ext.weigh(cast(numbers, dtype), -0.5, residual) == (6.0, 2099 / 16 + 36)
    numbers[position] = -np.inf
    assert ext.weigh(cast(numbers, dtype), 1.0) == (math.inf, math.inf)
    for bad in (np.nan, -np.nan):
        numbers[position] = bad
        numbers[(position + 32) % 2100] = np.inf  # the largest of all but NaN
        assert all(map(math.isnan, ext.weigh(cast(numbers, dtype), 1.0)))


def test_a_residual_may_make_a_nan(ext):
    source, residual = np.array([np.inf, 1.0]), np.array([-np.inf, 0], np.float32)
    assert all(map(math.isnan, ext.weigh(source, 1.0, residual)))
    assert ext.weigh(source[1:], 1.0, residual[:1]) == (math.inf, math.inf)
    assert math.isnan(ext.weigh(source, 0.0)[0])


def test_squares_may_overflow_and_vanish(ext):
    assert ext.weigh(np.array([1e200, -1.0]), 1.0) == (1e200, math.inf)
    assert ext.weigh(np.array([1e-200, -1e-300]), 1.0) == (1e-200, 0.0)


def test_nothing_is_written(ext):
    source, residual = np.full(40, 2.0, np.float32), np.full(40, 3.0, np.float32)
    source.flags.writeable = residual.flags.writeable = False
    assert ext.weigh(source, 2.0, residual) == (7.0, 40 * 49.0)
    assert ext.weigh(source, 0.5, source) == (3.0, 40 * 9.0)


@pytest.mark.parametrize(("wrong", "error"), WRONG_ARRAYS)
def test_wrong_arrays(ext, wrong, error):
    good = np.ones(4, np.float32)
    with pytest.raises(error):
        ext.weigh(wrong(good), 1.0)
    with pytest.raises(error):
        ext.weigh(good, 1.0, wrong(good))


@pytest.mark.parametrize("dtype", ["float16", "float64", "uint16"])
def test_residuals_are_float32_and_one_a_value(ext, dtype):
    good = np.ones(4, np.float32)
    with pytest.raises(TypeError, match="residual has dtype"):
        ext.weigh(good, 1.0, good.astype(dtype))
    for other in (good[:3], np.ones(5, np.float32), good[:0]):
        with pytest.raises(ValueError, match=f"residual has {other.size} elements, its source 4"):
            ext.weigh(good, 1.0, other)


@pytest.mark.parametrize(
    ("factor", "error"),
    [(np.nan, ValueError), (np.inf, ValueError), (-np.inf, ValueError), ("2", TypeError), (2j, TypeError)],
)
def test_factors(ext, factor, error):
    with pytest.raises(error):
        ext.weigh(np.ones(4), factor)
    with pytest.raises(TypeError):
        ext.weigh(np.ones(4), None)


def test_a_source_is_needed(ext):
    with pytest.raises(TypeError):
        ext.weigh(None, 1.0)
