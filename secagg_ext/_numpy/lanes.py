"""Floats as integers in the lanes of words, and sums of such words back to floats.

A block is `n` words of uint64. A word has `lanes` lanes of `lane_bits` bits, the first one lowest; value v of a block,
``0 <= v < n * lanes``, is in lane ``v // n`` of word ``v % n``. A value q of ``-limit … limit`` is stored as
``q + limit``, so that words add like integers: as long as ``2 * limit`` times the number of words fits `lane_bits`
bits, no sum of lanes reaches its neighbour.

Tensors and their dtypes are those of `secagg_ext._numpy.tensors`. Positions count values in the concatenation of all
tensors, so what a value becomes does not depend on the blocks that it is computed with.

All functions raise `TypeError` for a wrong type or dtype and `ValueError` for arrays that are not 1-D, contiguous,
writable where they are written to, of matching lengths and apart in memory, and for numbers out of range, and then
write nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from secagg_ext import lane_checks
from secagg_ext._numpy.tensors import Array, Doubles, _narrow, _overlaps, _quiet, _widen

Words = NDArray[np.uint64]
Counts = NDArray[np.int64]
Residual = NDArray[np.float32]


@_quiet
def quantise(
    sources: Sequence[Array],
    out: Words,
    n: int,
    lanes: int,
    lane_bits: int,
    limit: int,
    start: int,
    factors: Sequence[float],
    steps: Sequence[float],
    caps: Sequence[float],
    clipped: Counts,
    seed: int | None = None,
    residuals: Sequence[Residual] | None = None,
) -> None:
    """Fill blocks with a stretch of the concatenated tensors, scaled, clipped and rounded to integers.

    A value x becomes ``y = x * factor``, with its residual r ``y = x * factor + r``. In steps that is
    ``z = y * (1 / step)``. Then ``q = rint(clip(z, -cap, cap) + d)``, kept within the limit, with d = 0 or the dither;
    a NaN becomes 0. All is computed in float64, without fused operations; `rint` rounds ties to even.

    Parameters
    ----------
    sources
        The tensors.
    out
        uint64, ``k * n`` words, filled whole with the values from `start` on. Past the end of the tensors they are 0.
    n
        Words a block, a positive multiple of 8.
    lanes, lane_bits
        Lanes a word and bits a lane, together at most 64 bits.
    limit
        Largest magnitude of an integer, 1 … 2**23 - 1, and ``2 * limit < 2**lane_bits``.
    start
        Position of the first value, 0 or more.
    factors
        For each tensor the finite number that turns its values into units of y.
    steps
        For each tensor what q counts, in units of y: finite, over 0, and with a finite inverse.
    caps
        For each tensor the magnitude, in steps, that values are clipped to: 0 … limit. With residuals, z is clipped
        to the next whole number instead, since the part of a step below the cap would never be used up.
    clipped
        int64, one for each tensor: increased by how many of its values were clipped. Those are the values for which
        ``abs(z) <= cap`` does not hold, which is so of NaN too; with residuals ``abs(z) <= cap + 1``, since what
        is due may exceed the cap by less than a step.
    seed
        0 … 2**64 - 1: rounds up or down at random, with the mean at the value, by noise that depends on the seed and
        the position alone. It is uniform in 2**-24 and not of cryptographic quality. None rounds to the nearest.
    residuals
        For each tensor a float32 array of its size: what earlier roundings left, in units of y. It is added to the
        value and replaced by what this one leaves, ``y - q * step``, or by 0 if that is no finite float32. Where
        nothing is read, it stays.
    """
    lane_checks.quantise(
        sources, out, n, lanes, lane_bits, limit, start, factors, steps, caps, clipped, seed, residuals
    )
    integers = np.zeros(out.size * lanes, np.int64)  # in the order of positions
    done = 0
    rests = (rest for _, rest, _ in _overlaps(residuals, start, integers)) if residuals is not None else repeat(None)
    for (index, source, piece), rest in zip(_overlaps(sources, start, integers), rests, strict=False):
        step, cap = np.float64(steps[index]), np.float64(caps[index])
        y = _widen(source) * np.float64(factors[index])
        if rest is not None:
            y += rest
        z = y * (1 / step)
        clipped[index] += np.count_nonzero(~(np.abs(z) <= (cap if rest is None else cap + 1)))
        room = cap if rest is None else min(np.ceil(cap), np.float64(limit))
        rounded = np.clip(np.where(np.isnan(z), 0, z), -room, room)
        if seed is not None:
            rounded = rounded + _dither(seed, start + done, piece.size)
        piece[:] = np.clip(np.rint(rounded), -limit, limit)
        if rest is not None:
            left = y - piece * step
            rest[:] = np.where(np.abs(left) <= np.finfo(np.float32).max, left, 0)
        done += piece.size
    stored = (integers + limit).astype(np.uint64).reshape(-1, lanes, n)
    out[:] = np.bitwise_or.reduce(stored << _shifts(lanes, lane_bits), axis=1).reshape(-1)


@_quiet
def dequantise(
    words: Words,
    targets: Sequence[Array],
    n: int,
    lanes: int,
    lane_bits: int,
    largest: int,
    offset: int,
    start: int,
    factors: Sequence[float],
) -> int:
    """Write lane sums, ``(sum - offset) * factor``, to a stretch of the concatenated tensors.

    Parameters
    ----------
    words
        uint64, ``k * n`` words: sums of words of `quantise`.
    targets
        The tensors, writable. Products are rounded to their dtypes as by `scatter`. Sums past their end are padding.
    n, lanes, lane_bits
        As for `quantise`.
    largest
        The largest sum that can be: 0 … 2**53, and below ``2**lane_bits``.
    offset
        What to subtract from a sum, 0 … 2**53.
    start
        Position of the first sum, 0 or more.
    factors
        For each tensor a finite number.

    Returns
    -------
    int
        Position of the first sum over `largest`, or in the padding of the first that is not `offset`; or -1. Bits of
        a word above all lanes count as bits of its last lane. The tensors are written either way.
    """
    lane_checks.dequantise(words, targets, n, lanes, lane_bits, largest, offset, start, factors)
    uncut = words.reshape(-1, 1, n) >> _shifts(lanes, lane_bits)
    mask = np.uint64((1 << lane_bits) - 1)
    sums = (uncut & mask).reshape(-1)
    for index, target, piece in _overlaps(targets, start, sums):
        # Unsigned differences wrap, and what is below 0 shows as soon as they are read as signed.
        _narrow((piece - np.uint64(offset)).view(np.int64).astype(np.float64), factors[index], target)
    uncut[:, :-1] &= mask
    uncut = uncut.reshape(-1)
    padding = max(0, sum(target.size for target in targets) - start)
    wrong = uncut > np.uint64(largest)
    wrong[padding:] = uncut[padding:] != np.uint64(offset)
    return start + int(wrong.argmax()) if wrong.any() else -1


def _shifts(lanes: int, lane_bits: int) -> Words:
    shifts: Words = np.arange(lanes, dtype=np.uint64) * np.uint64(lane_bits)
    return shifts.reshape(lanes, 1)


def _dither(seed: int, start: int, count: int) -> Doubles:
    """Noise of -1/2 … 1/2 for positions from `start` on: SplitMix64, one output for two positions, 24 bits each."""
    positions = np.arange(start, start + count, dtype=np.uint64)
    h = np.uint64(seed) + np.uint64(0x9E3779B97F4A7C15) * (positions // np.uint64(2) + np.uint64(1))
    h = (h ^ h >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ h >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    h = h ^ h >> np.uint64(31)
    bits = np.where(positions % np.uint64(2) == 0, (h & np.uint64(0xFFFFFFFF)) >> np.uint64(8), h >> np.uint64(40))
    noise: Doubles = (bits.astype(np.float64) + 0.5) * 2.0**-24 - 0.5
    return noise
