"""Tensors of any float dtype as one float vector, and back.

Tensors are 1-D contiguous arrays of float16, float32 or float64, or of uint16, which means bfloat16 bit patterns,
for NumPy has no bfloat16. A vector is float32, float64 or complex128; complex128 holds two reals a slot, the real
part first. Positions count reals in the concatenation of all tensors.

Products are computed in float64 and rounded once, to nearest even; on the way to a 16-bit dtype, once more, to
float32 first. Plain copies (equal dtypes, factor 1, no bounds) keep every bit, NaN payloads included.

All functions raise `TypeError` for a wrong type or dtype and `ValueError` for arrays that are not 1-D, contiguous,
writable where they are written to and apart in memory, and for numbers out of range, and then write nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secagg_ext import checks

Array = NDArray[Any]
Doubles = NDArray[np.float64]

# What overflows becomes infinite and NaN stays NaN, as in any cast; the compiled kernels warn of neither.
_quiet = np.errstate(all="ignore")


@_quiet
def flatten(
    sources: Sequence[Array], out: Array, start: int = 0, factor: float = 1.0, bounds: Sequence[float] | None = None
) -> int:
    """Fill a vector with a stretch of the concatenated tensors, times a factor.

    Parameters
    ----------
    sources
        The tensors.
    out
        The vector; it receives the elements from `start` on. Past the end of the tensors it is filled with zeros.
    start
        Position of the first element to read, 0 or more.
    factor
        A finite number.
    bounds
        For each source the largest magnitude allowed, 0 or more; None checks nothing.

    Returns
    -------
    int
        Position of the first element read for which ``abs(x) <= bound`` does not hold, which is so of NaN too, or
        -1. `out` is filled either way.
    """
    checks.flatten(sources, out, start, factor, bounds)
    reals = _reals(out)
    found, filled = -1, 0
    for index, source, piece in _overlaps(sources, start, reals):
        filled += source.size
        if factor == 1 and bounds is None and source.dtype == piece.dtype:
            piece[:] = source
            continue
        wide = _widen(source)
        if bounds is not None and found < 0:
            within = _first_beyond(wide, bounds[index])
            found = start + filled - source.size + within if within >= 0 else -1
        _narrow(wide, factor, piece)
    reals[filled:] = 0
    return found


@_quiet
def scatter(vector: Array, targets: Sequence[Array], start: int = 0, factor: float = 1.0) -> None:
    """Write a vector, times a factor, to a stretch of the concatenated tensors: the inverse of `flatten`.

    Parameters
    ----------
    vector
        The vector. What reaches past the end of the tensors is padding and is ignored.
    targets
        The tensors, writable.
    start
        Position of the first element to write, 0 or more.
    factor
        A finite number.
    """
    checks.scatter(vector, targets, start, factor)
    reals = _reals(vector)
    for _, target, piece in _overlaps(targets, start, reals):
        if factor == 1 and target.dtype == piece.dtype:
            target[:] = piece
        else:
            _narrow(piece.astype(np.float64), factor, target)


@_quiet
def first_out_of_range(source: Array, bound: float) -> int:
    """Index of the first element for which ``abs(x) <= bound`` does not hold, which is so of NaN too, or -1.

    Parameters
    ----------
    source
        The tensor.
    bound
        The largest magnitude allowed, 0 or more.
    """
    checks.first_out_of_range(source, bound)
    return _first_beyond(_widen(source), bound)


@_quiet
def weigh(source: Array, factor: float, residual: NDArray[np.float32] | None = None) -> tuple[float, float]:
    """How large the values of a tensor are, times a factor and with what earlier roundings left.

    A value x becomes ``y = x * factor``, with its residual r ``y = x * factor + r``, as in `lanes.quantise`.

    Parameters
    ----------
    source
        The tensor.
    factor
        A finite number.
    residual
        float32, of the tensor's size.

    Returns
    -------
    float
        The largest ``abs(y)``: NaN if any y is, and 0 if there is none.
    float
        The sum of the squares of y, in float64 and in any order, which alone may differ between the implementations:
        relative to the sum, by up to ``size * 2**-53`` from the exact one of the rounded squares.
    """
    checks.weigh(source, factor, residual)
    y = _widen(source) * np.float64(factor)
    if residual is not None:
        y += residual
    return float(np.abs(y).max(initial=0)), float(np.square(y).sum())


def _reals(vector: Array) -> Array:
    return vector.view(np.float64) if vector.dtype == np.complex128 else vector


def _overlaps(tensors: Sequence[Array], start: int, reals: Array) -> Iterator[tuple[int, Array, Array]]:
    """For each tensor that meets the vector: its index, the part that does, and the part of the vector it meets."""
    end = start + reals.size
    begin = 0
    for index, tensor in enumerate(tensors):
        low, high = max(start, begin), min(end, begin + tensor.size)
        if low < high:
            yield index, tensor[low - begin : high - begin], reals[low - start : high - start]
        begin += tensor.size


def _widen(tensor: Array) -> Doubles:
    if tensor.dtype == np.uint16:  # bfloat16 is the upper half of a float32
        tensor = (tensor.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return tensor.astype(np.float64)


def _narrow(wide: Doubles, factor: float, to: Array) -> None:
    product = wide * np.float64(factor)
    if to.dtype.itemsize > 2:
        to[:] = product
    elif to.dtype == np.float16:
        to[:] = product.astype(np.float32)
    else:
        to[:] = _bfloat16(product.astype(np.float32))


def _bfloat16(singles: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Bit patterns of the nearest bfloat16, ties to even."""
    bits = singles.view(np.uint32)
    upper = bits >> np.uint32(16)
    # Half a unit of the last place, less one bit for ties that are even already, carries where it should.
    rounded = (bits + np.uint32(0x7FFF) + (upper & np.uint32(1))) >> np.uint32(16)
    quiet_nan = upper | np.uint32(0x40)  # a payload in the lower half only must not become an infinity
    patterns: NDArray[np.uint32] = np.where(np.isnan(singles), quiet_nan, rounded)
    return patterns.astype(np.uint16)


def _first_beyond(wide: Doubles, bound: float) -> int:
    beyond = ~(np.abs(wide) <= bound)
    return int(beyond.argmax()) if beyond.any() else -1
