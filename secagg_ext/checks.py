"""Checks of the kernels' arguments, one function a kernel, shared by both implementations.

The compiled kernels trust their arguments entirely, so whatever passes here must be safe without bounds checks.
A wrong type or dtype raises `TypeError`, anything else `ValueError`, before a byte is written.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secagg_ext.blocks import block_nbytes

Array = NDArray[Any]

# NumPy has no bfloat16: uint16 stands for its bit patterns.
_TENSOR = frozenset(map(np.dtype, ("float16", "float32", "float64", "uint16")))
_VECTOR = frozenset(map(np.dtype, ("float32", "float64", "complex128")))
_RESIDUALS = frozenset([np.dtype("float32")])
_WORDS = frozenset([np.dtype("uint64")])
_PACKED = frozenset([np.dtype("uint8")])


def flatten(sources: Sequence[Array], out: Array, start: int, factor: float, bounds: Sequence[float] | None) -> None:
    """Refuse wrong arguments of `flatten`."""
    _array("out", out, _VECTOR, writable=True)
    _position(start, out)
    _factor(factor)
    _arrays("sources", sources)
    for source in sources:
        _array("a source", source, _TENSOR)
        _disjoint("out", out, "a source", source)
    if bounds is not None:
        if len(bounds) != len(sources):
            raise ValueError(f"{len(bounds)} bounds for {len(sources)} sources: give one each")
        for bound in bounds:
            _bound(bound)


def scatter(vector: Array, targets: Sequence[Array], start: int, factor: float) -> None:
    """Refuse wrong arguments of `scatter`."""
    _array("vector", vector, _VECTOR)
    _position(start, vector)
    _factor(factor)
    _arrays("targets", targets)
    for target in targets:
        _array("a target", target, _TENSOR, writable=True)
        _disjoint("vector", vector, "a target", target)


def first_out_of_range(source: Array, bound: float) -> None:
    """Refuse wrong arguments of `first_out_of_range`."""
    _array("source", source, _TENSOR)
    _bound(bound)


def weigh(source: Array, factor: float, residual: Array | None) -> None:
    """Refuse wrong arguments of `weigh`."""
    _array("source", source, _TENSOR)
    _factor(factor)
    if residual is not None:
        _array("residual", residual, _RESIDUALS)
        if residual.size != source.size:
            raise ValueError(f"residual has {residual.size} elements, its source {source.size}")


def pack_words(words: Array, moduli: tuple[int, ...], n: int, out: Array) -> None:
    """Refuse wrong arguments of `pack_words`."""
    _array("words", words, _WORDS)
    _array("out", out, _PACKED, writable=True)
    _same_blocks(words, "out", out, moduli, n)
    _disjoint("words", words, "out", out)


def unpack_words(packed: Array, moduli: tuple[int, ...], n: int, out: Array) -> None:
    """Refuse wrong arguments of `unpack_words`."""
    _array("packed", packed, _PACKED)
    _array("out", out, _WORDS, writable=True)
    _same_blocks(out, "packed", packed, moduli, n)
    _disjoint("packed", packed, "out", out)


def check_words(packed: Array, moduli: tuple[int, ...], n: int) -> None:
    """Refuse wrong arguments of `check_words`."""
    _array("packed", packed, _PACKED)
    _whole_blocks("packed", packed, block_nbytes(moduli, n))


def add_words(acc: Array, packed: Array, moduli: tuple[int, ...], n: int) -> None:
    """Refuse wrong arguments of `add_words`."""
    _array("acc", acc, _PACKED, writable=True)
    _array("packed", packed, _PACKED)
    _whole_blocks("acc", acc, block_nbytes(moduli, n))
    if packed.size != acc.size:
        raise ValueError(f"packed has {packed.size} bytes, acc {acc.size}: they must be the same blocks")
    _disjoint("acc", acc, "packed", packed)


def _array(name: str, array: Array, dtypes: frozenset[np.dtype[Any]], writable: bool = False) -> None:
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name} must be a NumPy array, not {type(array).__name__}")
    if array.dtype not in dtypes:
        expected = ", ".join(sorted(dtype.name for dtype in dtypes))
        raise TypeError(f"{name} has dtype {array.dtype}; supported: {expected}")
    if array.ndim != 1:
        raise ValueError(f"{name} has {array.ndim} dimensions: make it 1-D")
    flags = array.flags
    if not (flags.c_contiguous and flags.aligned):
        raise ValueError(f"{name} is not contiguous and aligned: copy it first")
    if writable and not flags.writeable:
        raise ValueError(f"{name} is read-only, and would be written to")


def _arrays(name: str, arrays: Sequence[Array]) -> None:
    if not isinstance(arrays, Sequence):
        raise TypeError(f"{name} must be a sequence of NumPy arrays, not {type(arrays).__name__}")


def _disjoint(name: str, array: Array, other_name: str, other: Array) -> None:
    # Both are contiguous, so comparing their bounds, which is cheap, is exact.
    if np.may_share_memory(array, other):
        raise ValueError(f"{name} and {other_name} overlap in memory")


def _position(start: int, vector: Array) -> None:
    if type(start) is not int:
        raise TypeError(f"start must be an int, not {type(start).__name__}")
    if not 0 <= start <= sys.maxsize - 2 * vector.size:
        raise ValueError(f"start is {start}: it must be an index, 0 or more")


def _factor(factor: float) -> None:
    if not math.isfinite(factor):
        raise ValueError(f"factor is {factor}: it must be finite")


def _bound(bound: float) -> None:
    if not bound >= 0:  # so that NaN is refused
        raise ValueError(f"bound is {bound}: it must be 0 or more")


def _same_blocks(words: Array, name: str, packed: Array, moduli: tuple[int, ...], n: int) -> None:
    nbytes = block_nbytes(moduli, n)
    _whole_blocks(name, packed, nbytes)
    expected = packed.size // nbytes * len(moduli) * n
    if words.size != expected:
        raise ValueError(
            f"{words.size} words do not match {name}: its {packed.size // nbytes} blocks hold {expected} words"
        )


def _whole_blocks(name: str, packed: Array, nbytes: int) -> None:
    if packed.size % nbytes:
        raise ValueError(f"{name} has {packed.size} bytes: not a multiple of a block's {nbytes}")
