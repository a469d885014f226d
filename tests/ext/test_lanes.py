"""Values quantised into lanes: against plain Python, and one implementation against the other."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lane_kernels import (
    CLARA,
    HARD,
    NOT_FINITE,
    SLOTS,
    SMALL,
    TENSOR,
    cast,
    dequantise,
    doubles,
    lane_values,
    layouts,
    quantise,
    rest_seeds,
    same_bits,
    seeds,
    tensors,
)

import secagg_ext._cython as compiled
import secagg_ext._numpy as plain


def dither(seed, position):
    h = (seed + 0x9E3779B97F4A7C15 * (position // 2 + 1)) % 2**64
    h = (h ^ h >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    h = (h ^ h >> 27) * 0x94D049BB133111EB % 2**64
    h ^= h >> 31
    drawn = h >> 40 if position % 2 else (h & 0xFFFFFFFF) >> 8
    return (drawn + 0.5) * 2**-24 - 0.5


FLT_MAX = float(np.finfo(np.float32).max)
HUNDRED = SimpleNamespace(n=8, lanes=1, lane_bits=16, limit=100)


def by_hand(x, factor, step, cap, limit, d, r, fed_back):
    """Of one value: the integer, whether it is clipped, and the residual before it becomes a float32."""
    room, most = (min(math.ceil(cap), limit), cap + 1) if fed_back else (cap, cap)
    y = float(x) * factor + r
    z = y * (1 / step)
    q = 0 if math.isnan(z) else round(max(-room, min(room, z)) + d)
    q = max(-limit, min(limit, q))
    left = y - q * step
    return q, not abs(z) <= most, left if abs(left) <= FLT_MAX else 0.0


@settings(deadline=None)
@given(
    numbers=st.lists(st.sampled_from(HARD + NOT_FINITE) | st.floats(-200, 200) | st.floats(), max_size=2 * SLOTS),
    dtype=st.sampled_from(TENSOR),
    cut=st.integers(0, SLOTS),
    factor=st.sampled_from([1.0, -1.0, 0.5, 0.0, 1e-3, 77.7, 1e300]),
    step=st.sampled_from([1.0, 0.5, 3.0, 2**0.5 / 127, 1e-300, 1e300]),
    cap=st.sampled_from([127.0, 127 * (1 + 2**-41), 0.0, 100.0, 0.3]),
    seed=st.none() | seeds,
    rests=rest_seeds,
)
def test_every_value_is_what_plain_python_makes_of_it(numbers, dtype, cut, factor, step, cap, seed, rests):
    whole = cast(np.array(numbers, np.float64), dtype)
    rest = np.zeros(whole.size, np.float32)
    if rests is not None:
        rest = np.random.default_rng(rests).uniform(-min(step, 1e9), min(step, 1e9), whole.size).astype(np.float32)
    expected = [
        by_hand(x, factor, step, cap, 127, 0.0 if seed is None else dither(seed, p), float(r), rests is not None)
        for p, (x, r) in enumerate(zip(doubles(whole), rest, strict=True))
    ]
    for ext in (compiled, plain):
        left = rest.copy()
        residuals = None if rests is None else [left[:cut], left[cut:]]
        sources = [whole[:cut], whole[cut:]]
        clipped, words = quantise(ext, SMALL, sources, 0, 3, [factor] * 2, [step] * 2, [cap] * 2, seed, residuals)
        assert clipped == [sum(each[1] for each in part) for part in (expected[:cut], expected[cut:])]
        stored = [each[0] + 127 for each in expected]
        assert lane_values(SMALL, words) == stored + [127] * (3 * SLOTS - whole.size)
        if rests is not None:
            np.testing.assert_array_equal(left, np.array([each[2] for each in expected]).astype(np.float32))


@settings(deadline=None)
@given(layout=layouts(), sources=tensors(), seed=st.none() | seeds, rests=rest_seeds, data=st.data())
def test_quantise_is_alike_to_the_bit(layout, sources, seed, rests, data):
    total = sum(source.size for source in sources)
    start = data.draw(st.integers(0, total + 3))
    blocks = data.draw(st.integers(0, 2))
    factors = [data.draw(st.sampled_from([1.0, 0.0, layout.limit / 2]) | st.floats(-1e9, 1e9)) for _ in sources]
    steps = [data.draw(st.sampled_from([1.0, 1e-9, 1e9]) | st.floats(1e-300, 1e300)) for _ in sources]
    caps = [data.draw(st.sampled_from([0.0, float(layout.limit)]) | st.floats(0, layout.limit)) for _ in sources]
    results = []
    for ext in (compiled, plain):
        residuals = None
        if rests is not None:
            rng = np.random.default_rng(rests)
            residuals = [rng.standard_normal(source.size).astype(np.float32) for source in sources]
        made = quantise(ext, layout, sources, start, blocks, factors, steps, caps, seed, residuals)
        results.append((*made, residuals))
    (clipped, words, left), (same_clipped, same_words, same_left) = results
    assert clipped == same_clipped
    same_bits(words, same_words)
    for one, other in zip(left or [], same_left or [], strict=True):
        same_bits(one, other)


@pytest.mark.parametrize("seed", [None, 2**64 - 1])
def test_what_a_value_becomes_does_not_depend_on_the_blocks(ext, seed):
    """All at once, block by block, and shifted by an odd number of positions."""
    rng = np.random.default_rng(4)
    layout = SimpleNamespace(n=24, lanes=4, lane_bits=12, limit=1000)
    sizes = zip((95, 0, 301, 97, 1), [*TENSOR, "float32"], strict=True)
    sources = [cast(rng.normal(0, 300, size), dtype) for size, dtype in sizes]
    factors, steps = [1.0, 2.0, -0.5, 1.5, 1.0], [1.0, 0.3, 7.0, 1e-3, 1.0]
    caps = [1000.0, 1.0, 50.0, 999.5, 7.0]

    def run(start, blocks):
        rests = [np.linspace(-0.5, 0.5, source.size, dtype=np.float32) for source in sources]
        clipped, words = quantise(ext, layout, sources, start, blocks, factors, steps, caps, seed, rests)
        return clipped, lane_values(layout, words), np.concatenate(rests)

    clipped, values, rests = run(0, 6)
    fresh = np.concatenate([np.linspace(-0.5, 0.5, source.size, dtype=np.float32) for source in sources])
    assert sum(clipped) > 0
    parts = [run(96 * block, 1) for block in range(6)]
    assert np.sum([part[0] for part in parts], axis=0).tolist() == clipped
    assert [value for part in parts for value in part[1]] == values
    for block, part in enumerate(parts):  # the residuals of other blocks are left alone
        stretch = slice(96 * block, 96 * block + 96)
        np.testing.assert_array_equal(part[2][stretch], rests[stretch])
        np.testing.assert_array_equal(np.delete(part[2], stretch), np.delete(fresh, stretch))
    for start in (1, 37, 95):
        assert run(start, 5)[1] == values[start : start + 480]


def test_the_stretches_of_the_compiled_loops_do_not_show(ext):
    """A long row in one go, and cut into many tensors of odd sizes."""
    rng = np.random.default_rng(5)
    whole = rng.normal(0, 9000, 40_001).astype(np.float32)
    cuts = np.cumsum(rng.integers(1, 400, 100))
    pieces = np.split(whole, cuts[cuts < whole.size])
    expected = quantise(plain, CLARA, [whole], seed=9)
    clipped, words = quantise(ext, CLARA, pieces, seed=9)
    assert [sum(clipped)] == expected[0]
    np.testing.assert_array_equal(words, expected[1])
    back = [np.empty_like(piece) for piece in pieces]
    assert dequantise(ext, CLARA, words, back) == -1
    np.testing.assert_array_less(np.abs(np.concatenate(back) - whole.clip(-CLARA.limit, CLARA.limit)), 1)


@pytest.mark.parametrize("step", [1.0, 0.25, 3.0])
def test_what_is_clipped_is_counted(ext, step):
    source = step * np.array([10.0, 10.5, -10.0, -11.0, np.nan, np.inf, -1e300, 11.5])
    clipped, words = quantise(ext, HUNDRED, [source], steps=[step], caps=[10.0])
    assert clipped == [6]
    assert (words.astype(np.int64) - 100).tolist() == [10, 10, -10, -10, 0, 10, -10, 10]


@pytest.mark.parametrize("step", [1.0, 0.25, 3.0])
def test_with_residuals_what_is_due_may_exceed_the_cap_by_a_step(ext, step):
    source = step * np.array([10.0, 10.5, -10.0, -11.5, np.nan, np.inf, -1e300, 9.0])
    rest = np.array([step, 0, -1.25 * step, 0, 0, 0, 0, np.nan], np.float32)
    clipped, words = quantise(ext, HUNDRED, [source], steps=[step], caps=[10.0], residuals=[rest])
    assert clipped == [6]
    assert (words.astype(np.int64) - 100).tolist() == [10, 10, -10, -10, 0, 10, -10, 0]
    np.testing.assert_array_equal(rest, np.array([1, 0.5, -1.25, -1.5, 0, 0, 0, 0], np.float32) * np.float32(step))


def test_counts_of_clipped_values_go_on_for_each_tensor(ext):
    sources, clipped = [np.full(3, 2.0), np.zeros(2), np.empty(0), np.full(3, np.nan)], np.array([5, -1, 2, 2**40])
    for _ in range(2):
        out = np.zeros(8, np.uint64)
        ext.quantise(sources, out, 8, 1, 16, 100, 0, [1.0] * 4, [1.0] * 4, [1.0] * 4, clipped)
    assert clipped.tolist() == [11, -1, 2, 2**40 + 6]


def test_steps_are_what_an_integer_counts(ext):
    source = np.array([0.75, -0.8, 1e-3, 12.0, 24.9, 0, 0, 0])
    rest = np.zeros(8, np.float32)
    clipped, words = quantise(ext, HUNDRED, [source], steps=[0.25], residuals=[rest])
    assert clipped == [0]
    assert (words.astype(np.int64) - 100).tolist() == [3, -3, 0, 48, 100, 0, 0, 0]
    expected = source - 0.25 * np.array([3, -3, 0, 48, 100, 0, 0, 0])
    np.testing.assert_array_equal(rest, expected.astype(np.float32))


def test_residuals_may_use_up_the_part_of_a_step_below_the_cap(ext):
    source = np.array([9.4, -9.4, 9.6, 99.9, 9.4, 0, 0, 0])
    rest = np.array([0.3, -0.3, 0.9, 0.9, 2, 0, 0, 0], np.float32)
    clipped, words = quantise(ext, HUNDRED, [source], caps=[9.4], residuals=[rest])
    assert clipped == [3]
    assert (words.astype(np.int64) - 100).tolist() == [10, -10, 10, 10, 10, 0, 0, 0]
    assert quantise(ext, HUNDRED, [source], caps=[9.4])[1].astype(np.int64).tolist()[:3] == [109, 91, 109]


def test_residuals_make_up_for_what_rounding_loses(ext):
    """Over many rounds the integers sum up to the values, clipped ones too once there is room."""
    layout = SimpleNamespace(n=8, lanes=2, lane_bits=16, limit=100)
    source = np.linspace(-3.3, 4.4, 16)
    spike = np.zeros(16)
    spike[3] = 150.0
    for seed, step in ((None, 1.0), (1, 1.0), (None, 0.3), (1, 0.3)):
        rest, total = np.zeros(16, np.float32), np.zeros(16)
        for turn in range(50):
            each = source + spike * (turn == 0)
            noise = None if seed is None else seed + turn
            words = quantise(ext, layout, [each], steps=[step], seed=noise, residuals=[rest])[1]
            total += step * (np.array(lane_values(layout, words)) - 100)
        np.testing.assert_allclose(total + rest, 50 * source + spike, atol=1e-4)
        assert np.abs(rest).max() <= step


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.25, 0.5, 0.9])
def test_rounding_with_a_seed_has_the_value_as_its_mean(ext, fraction):
    count = 100_000
    source = np.full(count, 3 + fraction)
    integers = np.array(lane_values(CLARA, quantise(ext, CLARA, [source], seed=77)[1])[:count]) - CLARA.limit
    assert set(np.unique(integers)) <= {3, 4}
    error = math.sqrt(fraction * (1 - fraction) / (count / 2))
    for part in (integers[::2], integers[1::2]):  # the two halves of an output of the generator
        assert abs(part.mean() - source[0]) <= 5 * error
    up = integers > 3
    for lag in (1, 2, 3, CLARA.n):  # neighbours in a tensor or a word round independently
        together = np.mean(up[lag:] & up[:-lag])
        assert abs(together - fraction**2) <= 10 * error + 1e-12


def test_rounding_without_a_seed_is_to_nearest_even(ext):
    layout = SimpleNamespace(n=8, lanes=1, lane_bits=24, limit=2**23 - 1)
    source = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 8388606.5, 0.49999999999999994, -8388605.5])
    words = quantise(ext, layout, [source])[1]
    assert (words.astype(np.int64) - layout.limit).tolist() == [0, 2, 2, 0, -2, 8388606, 0, -8388606]


def test_seeds_give_different_noise_and_each_always_the_same(ext):
    source = np.full(1000, 0.5)
    runs = [quantise(ext, CLARA, [source], seed=seed)[1] for seed in (0, 1, 2**63, 0)]
    np.testing.assert_array_equal(runs[0], runs[3])
    for one, other in ((0, 1), (0, 2), (1, 2)):
        differ = np.array(lane_values(CLARA, runs[one])) != lane_values(CLARA, runs[other])
        assert 400 < differ.sum() < 600


def test_nothing_gives_nothing(ext):
    assert quantise(ext, CLARA, [], blocks=0)[0] == []
    clipped, words = quantise(ext, CLARA, [np.full(3, np.nan)], start=3, blocks=1, seed=1)
    assert clipped == [0]  # what lies before the stretch is not judged
    assert set(lane_values(CLARA, words)) == {CLARA.limit}
    assert dequantise(ext, CLARA, np.empty(0, np.uint64), [np.zeros(3)]) == -1
    target = np.full(3, 9.0)
    assert dequantise(ext, CLARA, words, [target], start=3) == -1
    assert (target == 9).all()


def test_the_last_position_there_is(ext):
    layout = SimpleNamespace(n=8, lanes=1, lane_bits=8, limit=1)
    assert quantise(ext, layout, [np.ones(3)], start=2**63 - 9, blocks=1, seed=3)[0] == [0]
    words = np.full(8, 255, np.uint64)
    assert dequantise(ext, layout, words, [np.ones(3)], start=2**63 - 9) == 2**63 - 9
