"""Checks of the arguments of the `lanes` kernels, as in `secagg_ext.checks`."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence

import numpy as np

from secagg_ext.checks import _RESIDUALS, _TENSOR, _WORDS, Array, _array, _arrays, _disjoint

_COUNTS = frozenset([np.dtype("int64")])

#: So that a value, its dither and what rounding leaves are exact in float64, and fit a lane beside many others.
LARGEST_LIMIT = 2**23 - 1

#: So that the difference of a lane sum and an offset is exact in float64.
LARGEST_SUM = 2**53

#: A cap may exceed the limit by this part of it: as much as its own computation in float64 may err.
CAP_MARGIN = 2**-40


def quantise(
    sources: Sequence[Array],
    out: Array,
    n: int,
    lanes: int,
    lane_bits: int,
    limit: int,
    start: int,
    factors: Sequence[float],
    steps: Sequence[float],
    caps: Sequence[float],
    clipped: Array,
    seed: int | None,
    residuals: Sequence[Array] | None,
) -> None:
    """Refuse wrong arguments of `quantise`."""
    _array("out", out, _WORDS, writable=True)
    _blocks("out", out, n, lanes, lane_bits, start)
    _integer("limit", limit, 1, LARGEST_LIMIT)
    if 2 * limit >= 1 << lane_bits:
        raise ValueError(f"limit is {limit}: lanes of {lane_bits} bits do not hold twice as much")
    _array("clipped", clipped, _COUNTS, writable=True)
    _disjoint("out", out, "clipped", clipped)
    _arrays("sources", sources)
    if clipped.size != len(sources):
        raise ValueError(f"clipped has {clipped.size} elements for {len(sources)} tensors: give one each")
    for source in sources:
        _array("a source", source, _TENSOR)
        _disjoint("out", out, "a source", source)
        _disjoint("clipped", clipped, "a source", source)
    _numbers("factors", factors, len(sources))
    _numbers("steps", steps, len(sources))
    for step in steps:
        if not (step > 0 and math.isfinite(1 / float(step))):
            raise ValueError(f"a step is {step}: it and its inverse must be finite and over 0")
    _numbers("caps", caps, len(sources))
    for cap in caps:
        if not 0 <= cap <= limit * (1 + CAP_MARGIN):
            raise ValueError(f"a cap is {cap}: it must lie between 0 and the limit, {limit}")
    if seed is not None:
        _integer("seed", seed, 0, 2**64 - 1)
    if residuals is not None:
        _residuals(residuals, sources, out, clipped)


def dequantise(
    words: Array,
    targets: Sequence[Array],
    n: int,
    lanes: int,
    lane_bits: int,
    largest: int,
    offset: int,
    start: int,
    factors: Sequence[float],
) -> None:
    """Refuse wrong arguments of `dequantise`."""
    _array("words", words, _WORDS)
    _blocks("words", words, n, lanes, lane_bits, start)
    _integer("largest", largest, 0, min(LARGEST_SUM, (1 << lane_bits) - 1))
    _integer("offset", offset, 0, LARGEST_SUM)
    _arrays("targets", targets)
    for target in targets:
        _array("a target", target, _TENSOR, writable=True)
        _disjoint("words", words, "a target", target)
    _numbers("factors", factors, len(targets))


def _integer(name: str, value: int, low: int, high: int) -> None:
    if type(value) is not int:
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}: outside {low} … {high}")


def _blocks(name: str, words: Array, n: int, lanes: int, lane_bits: int, start: int) -> None:
    _integer("n", n, 8, sys.maxsize)
    if n % 8:
        raise ValueError(f"n is {n}: words a block must be a positive multiple of 8")
    if words.size % n:
        raise ValueError(f"{name} has {words.size} words: not a multiple of a block's {n}")
    _integer("lanes", lanes, 1, 64)
    _integer("lane_bits", lane_bits, 1, 64)
    if lanes * lane_bits > 64:
        raise ValueError(f"{lanes} lanes of {lane_bits} bits do not fit a word of 64")
    _integer("start", start, 0, sys.maxsize - words.size * lanes)


def _numbers(name: str, numbers: Sequence[float], count: int) -> None:
    if len(numbers) != count:
        raise ValueError(f"{len(numbers)} {name} for {count} tensors: give one each")
    for number in numbers:
        try:
            finite = math.isfinite(number)
        except OverflowError:  # an int beyond every float
            finite = False
        if not finite:
            raise ValueError(f"one of {name} is {number}: it must be finite")


def _residuals(residuals: Sequence[Array], sources: Sequence[Array], *others: Array) -> None:
    _arrays("residuals", residuals)
    if len(residuals) != len(sources):
        raise ValueError(f"{len(residuals)} residuals for {len(sources)} sources: give one each")
    for residual, source in zip(residuals, sources, strict=True):
        _array("a residual", residual, _RESIDUALS, writable=True)
        if residual.size != source.size:
            raise ValueError(f"a residual has {residual.size} elements, its source {source.size}")
    if _overlap(residuals, [*others, *sources]):
        raise ValueError("a residual overlaps another array in memory, and is written to")


def _overlap(written: Iterable[Array], read: Iterable[Array]) -> bool:
    """Whether any written array shares memory with any other one; the read ones may do so among themselves."""
    spans = [(array.ctypes.data, array.nbytes, True) for array in written]
    spans += [(array.ctypes.data, array.nbytes, False) for array in read]
    # In the order of addresses, an array overlaps an earlier one if that reaches beyond its first byte. Comparing
    # each with each instead would take seconds for a model of thousands of tensors.
    read_end = written_end = 0
    for begin, nbytes, is_written in sorted(span for span in spans if span[1]):
        if begin < written_end or (is_written and begin < read_end):
            return True
        if is_written:
            written_end = begin + nbytes
        else:
            read_end = max(read_end, begin + nbytes)
    return False
