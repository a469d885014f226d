"""Flattening and scattering, against plain NumPy expressions and one implementation against the other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import secagg_ext._cython as compiled
import secagg_ext._numpy as plain

SLOTS = 4096
TENSOR = ["float16", "float32", "float64", "uint16"]  # uint16: bfloat16 bit patterns
VECTOR = ["float32", "float64", "complex128"]
HARD = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 5e-324, 1e-40, 6e-8, 65504.0, 65520.0, 3.4e38, 3.5e38, 1.8e308]

seeds = st.integers(0, 2**32 - 1)
factors = st.sampled_from([1.0, 1, -1.0, 0.0, 0.125, 1e-3, 1e300, -1e-300]) | st.floats(
    allow_nan=False, allow_infinity=False
)
limits = st.sampled_from([0.0, -0.0, 1.0, 8.0, 65504.0, np.inf]) | st.floats(min_value=0)


@st.composite
def tensors(draw):
    """Some tensors: any bit pattern, or numbers near one, or hard ones; more than one chunk long now and then."""
    rng = np.random.default_rng(draw(seeds))
    made = []
    for dtype in draw(st.lists(st.sampled_from(TENSOR), max_size=4)):
        size = draw(st.integers(0, 20) | st.sampled_from([1023, 1024, 1025, 2100]))
        kind = draw(st.sampled_from(["bits", "normal", "hard"]))
        if kind == "bits":
            tensor = np.frombuffer(rng.bytes(size * np.dtype(dtype).itemsize), dtype)
        else:
            numbers = rng.standard_normal(size) if kind == "normal" else rng.choice(HARD, size)
            tensor = cast(numbers, dtype)
        made.append(tensor)
    return made


@np.errstate(all="ignore")
def cast(numbers, dtype):
    """Numbers as a tensor; bfloat16 by cutting, which is exact where it matters below."""
    if dtype == "uint16":
        return (numbers.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return numbers.astype(dtype)


def doubles(tensor):
    if tensor.dtype == np.uint16:
        tensor = (tensor.astype(np.uint32) << 16).view(np.float32)
    return tensor.astype(np.float64)


def vector(reals, dtype):
    """A vector with room for so many reals, or one more, full of something else."""
    size = (reals + 1) // 2 if dtype == "complex128" else reals
    return np.full(size, -7, dtype)


def same_bits(left, right):
    assert left.dtype == right.dtype
    assert left.tobytes() == right.tobytes()


@settings(deadline=None)
@given(sources=tensors(), dtype=st.sampled_from(VECTOR), factor=factors, data=st.data())
def test_flatten_is_alike_to_the_bit(sources, dtype, factor, data):
    total = sum(source.size for source in sources)
    start = data.draw(st.integers(0, total + 3))
    out = vector(data.draw(st.integers(0, total + 10)), dtype)
    bounds = data.draw(st.none() | st.lists(limits, min_size=len(sources), max_size=len(sources)))
    same = out.copy()
    found = compiled.flatten(sources, out, start, factor, bounds)
    assert found == plain.flatten(sources, same, start, factor, bounds)
    same_bits(out, same)


@settings(deadline=None)
@given(source=tensors().filter(len).map(lambda made: made[0]), bound=limits)
def test_first_out_of_range_is_alike(source, bound):
    with np.errstate(invalid="ignore"):
        beyond = np.flatnonzero(~(np.abs(doubles(source)) <= bound))
    expected = beyond[0] if beyond.size else -1
    assert compiled.first_out_of_range(source, bound) == expected
    assert plain.first_out_of_range(source, bound) == expected


@settings(deadline=None)
@given(values=tensors(), dtype=st.sampled_from(VECTOR), factor=factors, data=st.data())
@np.errstate(all="ignore")
def test_scatter_is_alike_to_the_bit(values, dtype, factor, data):
    reals = np.concatenate([np.zeros(0), *map(doubles, values)])
    if dtype == "complex128":
        reals = np.append(reals, np.zeros(reals.size % 2))
    source = reals.astype(np.float32) if dtype == "float32" else reals.view(dtype)
    sizes = data.draw(st.lists(st.integers(0, 20) | st.just(1500), max_size=4))
    targets = [np.full(size, 7, data.draw(st.sampled_from(TENSOR))) for size in sizes]
    start = data.draw(st.integers(0, sum(sizes) + 3))
    same = [target.copy() for target in targets]
    compiled.scatter(source, targets, start, factor)
    plain.scatter(source, same, start, factor)
    for target, other in zip(targets, same, strict=True):
        same_bits(target, other)


@pytest.mark.parametrize("dtype", TENSOR)
@pytest.mark.parametrize("out", VECTOR)
def test_flatten_multiplies_in_float64_and_rounds_once(ext, dtype, out):
    rng = np.random.default_rng(5)
    sources = [cast(rng.standard_normal(size), dtype) for size in (1, 0, 3000, 7)]
    expected = np.concatenate([doubles(source) for source in sources]) * (1 / 3)
    room = vector(3010, out)
    assert ext.flatten(sources, room, 0, 1 / 3, [100.0] * 4) == -1
    reals = room if out == "float32" else room.view(np.float64)
    np.testing.assert_array_equal(reals[:3008], expected.astype(reals.dtype))
    np.testing.assert_array_equal(reals[3008:], 0)


@pytest.mark.parametrize("size", [0, 1, SLOTS - 1, SLOTS, SLOTS + 1, 2 * SLOTS - 1, 2 * SLOTS, 2 * SLOTS + 1])
@pytest.mark.parametrize("out", VECTOR)
@pytest.mark.parametrize("dtype", TENSOR)
def test_blocks_bring_tensors_back(ext, size, out, dtype):
    """Cut into blocks of 4096 slots, the last one padded with zeros, and put together again."""
    rng = np.random.default_rng(size)
    cut = size // 3
    numbers = rng.standard_normal(size)
    if out == "float32" and dtype == "float64":
        numbers = numbers.astype(np.float32)  # what the vector can hold
    whole = cast(numbers, dtype)
    sources = [whole[:cut].copy(), whole[cut:].copy()]
    targets = [np.full_like(source, 1) for source in sources]
    block = np.empty(SLOTS, out)
    reals = block.view(np.float64) if out == "complex128" else block
    for start in range(0, size, reals.size):
        block[:] = np.nan
        assert ext.flatten(sources, block, start=start, bounds=[10.0, 10.0]) == -1
        np.testing.assert_array_equal(reals[size - start :], 0)
        ext.scatter(block, targets, start=start)
    for source, target in zip(sources, targets, strict=True):
        same_bits(target, source)


@pytest.mark.parametrize("position", [0, 1, 1023, 1024, 2047, 2048, 4099])
@pytest.mark.parametrize("dtype", TENSOR)
def test_the_first_element_beyond_its_bound_is_found_where_it_is(ext, dtype, position):
    for bad in (np.nan, np.inf, -np.inf, 2.5, -2.5):
        numbers = np.full(4100, -2.0)
        numbers[position:] = bad
        source = cast(numbers, dtype)
        assert ext.first_out_of_range(source, 2.0) == position
        assert ext.first_out_of_range(source[:position], 2.0) == -1
        out = np.empty(4105)
        calm = cast(np.full(10, 9.0), dtype)
        assert ext.flatten([calm, source], out, 5, 0.5, [9.0, 2.0]) == 10 + position
        np.testing.assert_array_equal(out[5:], numbers * 0.5)  # filled all the same


def test_elements_outside_the_stretch_are_not_judged(ext):
    source = np.array([np.nan, 1, 2, np.nan])
    assert ext.flatten([source], np.empty(2), 1, bounds=[2.0]) == -1


@pytest.mark.parametrize("dtype", TENSOR)
def test_a_bound_of_minus_zero_is_zero(ext, dtype):
    assert ext.first_out_of_range(cast(np.array([0.0, -0.0, 1.0]), dtype), -0.0) == 2


def test_an_infinite_bound_lets_infinity_pass_but_not_nan(ext):
    assert ext.first_out_of_range(np.array([np.inf, -np.inf, np.nan]), np.inf) == 2


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_plain_copy_keeps_every_bit(ext, dtype):
    source = np.frombuffer(np.random.default_rng(3).bytes(80_000), dtype)
    signalling = np.array([0x7F800001, 0xFF800001], np.uint32).view(np.float32)
    sources = [source, signalling] if dtype == "float32" else [source]
    out = np.empty(sum(each.size for each in sources), dtype)
    assert ext.flatten(sources, out) == -1
    assert out.tobytes() == b"".join(each.tobytes() for each in sources)
    targets = [np.empty_like(each) for each in sources]
    ext.scatter(out, targets)
    for each, target in zip(sources, targets, strict=True):
        same_bits(target, each)


def test_every_float16_widens_as_numpy_does(ext):
    patterns = np.arange(65536, dtype=np.uint16).view(np.float16)
    numbers = patterns[~np.isnan(patterns)]
    out = np.empty(numbers.size, np.float32)
    ext.flatten([numbers], out)
    same_bits(out, numbers.astype(np.float32))
    lost = np.empty(65536 - numbers.size)
    ext.flatten([patterns[np.isnan(patterns)]], lost)
    assert np.isnan(lost).all()


def test_every_bfloat16_is_the_upper_half_of_a_float32(ext):
    patterns = np.arange(65536, dtype=np.uint16)
    singles = (patterns.astype(np.uint32) << 16).view(np.float32)
    out = np.empty(65536, np.float32)
    ext.flatten([patterns], out)
    np.testing.assert_array_equal(out, singles)
    np.testing.assert_array_equal(np.signbit(out), np.signbit(singles))


@pytest.mark.parametrize("dtype", ["float16", "uint16"])
def test_narrowing_rounds_to_nearest_even(ext, dtype):
    """Between any two neighbours: the middle goes to the even one, what is beside the middle to the nearer one."""
    finite = 0x7C00 if dtype == "float16" else 0x7F80
    patterns = np.arange(finite, dtype=np.uint16)
    below = doubles(patterns.view(dtype))
    above = np.append(below[1:], 2.0 ** (16 if dtype == "float16" else 128))
    middle = (below + above) / 2
    upper = patterns + np.uint16(1)  # after the largest number comes infinity
    even = np.where(patterns % 2 == 0, patterns, upper)
    nudge = (above - below) / 64
    with np.errstate(over="ignore"):
        singles = [each.astype(np.float32) for each in (below, middle, middle - nudge, middle + nudge)]
    for numbers, expected in zip(singles, (patterns, even, patterns, upper), strict=True):
        for sign, bit in ((1, 0), (-1, 0x8000)):
            target = np.empty(patterns.size, dtype)
            ext.scatter(numbers * np.float32(sign), [target])
            np.testing.assert_array_equal(target.view(np.uint16), expected | np.uint16(bit))


@pytest.mark.parametrize("dtype", ["float16", "uint16"])
def test_narrowing_keeps_nan_and_infinity(ext, dtype):
    hidden = np.array([0x7F800001, 0xFFFFFFFF, 0x7F80FFFF], np.uint32).view(np.float32)  # payloads in the lower half
    target = np.empty(3, dtype)
    ext.scatter(hidden, [target])
    assert np.isnan(doubles(target)).all()
    ext.scatter(np.array([np.inf, -np.inf, 3.4e38], np.float32), [target])
    assert doubles(target)[:2].tolist() == [np.inf, -np.inf]


def test_float64_narrows_to_16_bits_through_float32(ext):
    """1 + 2**-11 is a tie for float16; what lies 2**-40 above it is one too, once it is a float32."""
    target = np.empty(1, np.float16)
    ext.scatter(np.array([1 + 2**-11 + 2**-40]), [target])
    assert target[0] == 1


def test_scatter_leaves_the_rest_alone(ext):
    targets = [np.full(4, 9.0), np.full(0, 9.0), np.full(4, 9.0, np.float32)]
    ext.scatter(np.array([1.0, 2.0, 3.0]), targets, start=3)
    assert targets[0].tolist() == [9, 9, 9, 1]
    assert targets[2].tolist() == [2, 3, 9, 9]
    ext.scatter(np.array([5.0, 6.0]), targets, start=7, factor=0.5)
    assert targets[2].tolist() == [2, 3, 9, 2.5]
    ext.scatter(np.array([5.0, 6.0]), targets, start=80)
    assert targets[2].tolist() == [2, 3, 9, 2.5]


def test_nothing_gives_nothing(ext):
    assert ext.flatten([], np.empty(0)) == -1
    out = np.full(3, 7.0, np.complex128)
    assert ext.flatten([np.empty(0, np.float16)], out, start=5) == -1
    assert not out.any()
    ext.scatter(np.empty(0), [])
    assert ext.first_out_of_range(np.empty(0), 1.0) == -1
