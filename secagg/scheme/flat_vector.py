"""Many vectors seen as one long vector that is read and written in ranges.

An update is encoded block by block from here, so a model is never flattened as a whole.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

import secagg_ext

from .lanes import Lanes


class FlatVector:
    """The concatenation of `vectors`, which are referred to, not copied.

    Parameters
    ----------
    vectors : sequence of ndarray
        One-dimensional, C-contiguous; float16, float32, float64, or uint16 that means bfloat16.
    bounds : sequence of float, optional
        Largest absolute value of each vector, checked by `read`.
    """

    def __init__(self, vectors: Sequence[NDArray[Any]], bounds: Sequence[float] | None = None) -> None:
        self._vectors = list(vectors)
        self._bounds = None if bounds is None else list(bounds)
        self._offsets = [0, *accumulate(vector.size for vector in self._vectors)]

    @property
    def size(self) -> int:
        """Number of values."""
        return self._offsets[-1]

    def read(self, start: int, out: NDArray[np.float64], factor: float) -> int:
        """Fill `out` with ``size`` values from `start` times `factor`, zeros behind the end.

        Returns
        -------
        int
            Index of the first value that is NaN or beyond its bound, or -1.
        """
        first, last = self._span(start, out.size)
        base = self._offsets[first]
        bounds = None if self._bounds is None else self._bounds[first:last]
        bad = secagg_ext.flatten(self._vectors[first:last], out, start - base, factor, bounds)
        return bad if bad < 0 else bad + base

    def write(self, start: int, values: NDArray[np.float64], factor: float) -> None:
        """Store `values` times `factor` from `start`; what is behind the end is padding and is dropped."""
        first, last = self._span(start, values.size)
        secagg_ext.scatter(values, self._vectors[first:last], start - self._offsets[first], factor)

    def quantise(
        self,
        start: int,
        out: NDArray[np.uint64],
        lanes: Lanes,
        factors: Sequence[float],
        steps: Sequence[float],
        caps: Sequence[float],
        clipped: NDArray[np.int64],
        seed: int | None,
        residuals: Sequence[NDArray[np.float32]] | None,
    ) -> None:
        """Fill whole blocks of words with quantised values from `start`; see `secagg_ext.quantise`.

        `factors`, `steps`, `caps` and `residuals` are those of each vector; `clipped` counts on, one for each.
        """
        first, last = self._span(start, out.size * lanes.per_word)
        if seed is not None:  # noise depends on the position among all
            first, last = 0, len(self._vectors)
        secagg_ext.quantise(
            self._vectors[first:last],
            out,
            lanes.words,
            lanes.per_word,
            lanes.bits,
            lanes.limit,
            start - self._offsets[first],
            factors[first:last],
            steps[first:last],
            caps[first:last],
            clipped[first:last],
            seed,
            None if residuals is None else residuals[first:last],
        )

    def dequantise(
        self, start: int, words: NDArray[np.uint64], lanes: Lanes, factors: Sequence[float], sites: int
    ) -> int:
        """Store sums of `sites` quantised values, whole blocks of words from `start`, times the factor of each vector.

        Returns
        -------
        int
            Position of the first sum that so many sites cannot give, or -1.
        """
        offset = sites * lanes.limit
        first, last = self._span(start, words.size * lanes.per_word)
        base, vectors = self._offsets[first], self._vectors[first:last]
        bad = secagg_ext.dequantise(
            words,
            vectors,
            lanes.words,
            lanes.per_word,
            lanes.bits,
            2 * offset,
            offset,
            start - base,
            factors[first:last],
        )
        return bad if bad < 0 else bad + base

    def first_out_of_range(self) -> tuple[int, int] | None:
        """Return the position (vector, index) of the first value that is NaN or beyond its bound."""
        for which, bound in enumerate(self._bounds or ()):
            index = secagg_ext.first_out_of_range(self._vectors[which], bound)
            if index >= 0:
                return which, index
        return None

    def _span(self, start: int, size: int) -> tuple[int, int]:
        """Return the slice of vectors that hold values of the range."""
        first = min(max(bisect_right(self._offsets, start) - 1, 0), max(len(self._vectors) - 1, 0))
        last = first
        while last < len(self._vectors) and self._offsets[last] < start + size:
            last += 1
        return first, last


def weigh(vector: NDArray[Any], factor: float, residual: NDArray[np.float32] | None = None) -> tuple[float, float]:
    """Return the largest magnitude, and the sum of squares, of the values of a vector times `factor` plus residuals.

    NaN anywhere is the largest.
    """
    return secagg_ext.weigh(vector, factor, residual)
