"""Sums of lanes: that they are exact, read back to the bit, and that those which cannot be are found."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lane_kernels import (
    SLOTS,
    SMALL,
    TENSOR,
    cast,
    dequantise,
    doubles,
    lane_values,
    layouts,
    quantise,
    same_bits,
    tensors,
)

import secagg_ext._cython as compiled
import secagg_ext._numpy as plain


@settings(deadline=None)
@given(layout=layouts(), targets=tensors(), seed=st.integers(0, 2**32), data=st.data())
def test_dequantise_is_alike_to_the_bit(layout, targets, seed, data):
    """Any words, those with a sum over the largest included: then too the tensors are written."""
    top = (1 << layout.lane_bits) - 1
    largest = data.draw(st.integers(0, min(top, 2**53)) | st.just(min(top, 2**53)))
    offset = data.draw(st.sampled_from([0, largest // 2, 2**50 - 1, 2**50, 2**53]))
    start = data.draw(st.integers(0, sum(target.size for target in targets) + 3))
    factors = [data.draw(st.sampled_from([1.0, 0.0, -1e-3, 1e300]) | st.floats(-1e9, 1e9)) for _ in targets]
    words = np.random.default_rng(seed).integers(0, 2**64 - 1, data.draw(st.integers(0, 2)) * layout.n, np.uint64)
    if data.draw(st.booleans()):
        words >>= np.uint64(64 - layout.lanes * layout.lane_bits)
    copies = [target.copy() for target in targets], [target.copy() for target in targets]
    found = [
        ext.dequantise(words, copy, layout.n, layout.lanes, layout.lane_bits, largest, offset, start, factors)
        for ext, copy in zip((compiled, plain), copies, strict=True)
    ]
    assert found[0] == found[1]
    for one, other in zip(*copies, strict=True):
        same_bits(one, other)


@settings(deadline=None, max_examples=50)
@given(
    lanes=st.integers(1, 10),
    limit=st.integers(1, 2**23 - 1),
    clients=st.integers(1, 12),
    shares=st.lists(st.floats(0, 1), min_size=12, max_size=12),
    seed=st.integers(0, 2**32),
)
def test_lanes_never_reach_their_neighbour(lanes, limit, clients, shares, seed):
    """Sums of as many words as the lanes are made for are the sums of the integers, in every lane."""
    lane_bits = (2 * limit * 12).bit_length()
    lanes = min(lanes, 64 // lane_bits)
    layout = SimpleNamespace(n=8, lanes=lanes, lane_bits=lane_bits, limit=limit)
    rng = np.random.default_rng(seed)
    integers = rng.integers(-limit, limit, (clients, 8 * lanes), endpoint=True)
    for row, share in zip(integers, shares, strict=False):  # the extremes, alone and side by side
        row[rng.random(row.size) < share] = rng.choice([-limit, limit])
    for ext in (compiled, plain):
        words = [quantise(ext, layout, [row.astype(np.float64)])[1] for row in integers]
        total = np.sum(words, axis=0, dtype=np.uint64)
        assert total.tolist() == [sum(column) for column in zip(*(each.tolist() for each in words), strict=True)]
        target = np.empty(8 * lanes)
        assert dequantise(ext, layout, total, [target], clients) == -1
        np.testing.assert_array_equal(target, integers.sum(axis=0))


@pytest.mark.parametrize("dtype", TENSOR)
@pytest.mark.parametrize("size", [0, 1, SLOTS - 1, SLOTS, SLOTS + 1])
def test_integers_come_back_and_the_padding_is_zero(ext, size, dtype):
    source = cast(np.arange(size) % 255 - 127.0, dtype)
    for seed in (None, 5):
        clipped, words = quantise(ext, SMALL, [source], blocks=2, seed=seed)
        assert clipped == [0]
        assert lane_values(SMALL, words)[size:] == [127] * (2 * SLOTS - size)
        target = np.ones_like(source)
        assert dequantise(ext, SMALL, words, [target]) == -1
        np.testing.assert_array_equal(doubles(target), doubles(source))


@pytest.mark.parametrize("dtype", TENSOR)
@pytest.mark.parametrize("factor", [1.0, 1 / 3, 1e-7, 1e35])
def test_sums_are_rounded_as_scatter_rounds(ext, dtype, factor):
    rng = np.random.default_rng(6)
    sums = rng.integers(0, 2**21, 3 * 8192, np.uint64)
    sums[-5:] = 1_000_000  # padding
    words = sums[:8192] | sums[8192:16384] << np.uint64(21) | sums[16384:] << np.uint64(42)
    reals = sums.astype(np.float64) - 1_000_000
    target = np.zeros(sums.size - 5, dtype)
    assert ext.dequantise(words, [target], 8192, 3, 21, 2**21 - 1, 1_000_000, 0, [factor]) == -1
    expected = np.zeros_like(target)
    ext.scatter(reals, [expected], factor=factor)
    same_bits(target, expected)


@pytest.mark.parametrize("position", [0, 15, 16, 47, 48, 60, 95])
def test_the_first_sum_over_the_largest_is_found_where_it_is(ext, position):
    """In tensors; and in the padding behind them any that is not zero."""
    for start in (0, 7):
        words = quantise(ext, SMALL, [np.full(60, 127.0)], blocks=2)[1]
        target = np.zeros(start + 60)
        assert dequantise(ext, SMALL, words, [target], start=start) == -1
        for later in (position, 95):
            block, value = divmod(later, SLOTS)
            words[block * SMALL.n + value % SMALL.n] += np.uint64(1 << value // SMALL.n * 9)
        assert dequantise(ext, SMALL, words, [target], start=start) == start + position
        assert (target[start:] >= 127).all()


def test_bits_above_all_lanes_are_found_in_the_last_lane(ext):
    for bit in (27, 40, 62, 63):
        words = quantise(ext, SMALL, [np.zeros(5)], blocks=2)[1]
        words[[SMALL.n + 3, SMALL.n + 5]] |= np.uint64(1 << bit)
        assert dequantise(ext, SMALL, words, [np.zeros(5)], start=10) == 10 + SLOTS + 2 * SMALL.n + 3
        words[2] += np.uint64(1)  # of the first lane, and earlier
        assert dequantise(ext, SMALL, words, [np.zeros(5)], start=10) == 12
    whole = np.full(8, 2**64 - 1, np.uint64)
    assert ext.dequantise(whole, [], 8, 1, 64, 2**53, 0, 0, []) == 0
