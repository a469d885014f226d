"""Scales that nobody guesses: for each tensor the power of √2 that the largest value of all sites needs.

A site tells the largest magnitude of each tensor as a count of one in one of `BINS` bins: bin i has what is above
2**((i − 1 + `LOWEST`)/2) and at most 2**((i + `LOWEST`)/2), and the lowest has all that is smaller. Counts add up, and
the highest bin of the sum that is not empty is the bound of the tensor. Counts are whole numbers: all sites read the
same.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import median_low

import numpy as np
from numpy.typing import NDArray

from ..errors import FormatError

#: Bins a tensor, and twice the binary logarithm of the bound of the first of them: 2**-51.5 … 2**44.
BINS, LOWEST = 192, -103

#: In the place of a bin, where nothing has been measured yet.
UNKNOWN = BINS

#: How far the scales of one round lie above what was measured in the one before, and how far they fall in a round at
#: most, in bins: factors of √2 and 1/2. Small tensors lie 4 × above, and fall as they must.
_HEADROOM, _SMALL_HEADROOM, _FALL = 1, 4, 2

_HALF_OCTAVE = math.sqrt(0.5)


@dataclass(frozen=True)
class Scales:
    """The bin of each tensor that is sent, in the order of the layout.

    Parameters
    ----------
    bins : tuple of int
        0 … ``BINS − 1``, or all of them `UNKNOWN`.
    """

    bins: tuple[int, ...]

    @classmethod
    def unknown(cls, tensors: int) -> Scales:
        """Return the scales of a round in which nothing has been measured yet: it measures, and sends no values."""
        return cls((UNKNOWN,) * tensors)

    @property
    def known(self) -> bool:
        """Whether something has been measured."""
        return UNKNOWN not in self.bins

    @property
    def bounds(self) -> list[float]:
        """The largest magnitude of a weighted value of each tensor; 0 where none is known."""
        return [0.0 if item == UNKNOWN else bound_of(item) for item in self.bins]

    def to_bytes(self) -> bytes:
        """Return them as a byte a tensor."""
        return bytes(self.bins)

    @classmethod
    def from_bytes(cls, blob: bytes) -> Scales:
        """Read what `to_bytes` wrote; `FormatError` if it is something else."""
        if any(item > UNKNOWN for item in blob) or (UNKNOWN in blob and set(blob) != {UNKNOWN}):
            raise FormatError("stored scales have bins that are none")
        return cls(tuple(blob))

    @classmethod
    def measured(cls, counts: NDArray[np.float64]) -> Scales:
        """Return the scales for what sites have counted.

        A tensor that is zero at all sites has the median of the others; if all are zero, nothing is lost by any scale.

        Parameters
        ----------
        counts : ndarray
            Sites whose largest value is in a bin, (tensors, `BINS`).
        """
        tops = [int(found[-1]) if (found := np.flatnonzero(row)).size else None for row in counts]
        seen = [top for top in tops if top is not None]
        other = median_low(seen) if seen else -LOWEST
        return cls(tuple(other if top is None else top for top in tops))

    def following(self, counts: NDArray[np.float64], small: Collection[int] = ()) -> Scales:
        """Return the scales of the next round for what was counted in one of these: a little above, and falling slowly.

        The bound is √2 × the largest that was measured, and at least half of the last one.

        Parameters
        ----------
        counts : ndarray
            As of `measured`.
        small : collection of int
            Places of the tensors that take several lanes a value: they have bits to spare, and a bound of 4 × instead,
            whatever the last one was.
        """
        measured = Scales.measured(counts)
        tops = [
            min(top + (_SMALL_HEADROOM if place in small else _HEADROOM), BINS - 1)
            for place, top in enumerate(measured.bins)
        ]
        if self.known:
            tops = [
                top if place in small else max(top, before - _FALL)
                for place, (top, before) in enumerate(zip(tops, self.bins, strict=True))
            ]
        return Scales(tuple(tops))


def bound_of(bin: int) -> float:
    """Return the largest value of a bin."""
    octaves, half = divmod(bin + LOWEST, 2)
    return math.ldexp(2 * _HALF_OCTAVE if half else 1.0, octaves)


def bin_of(largest: float) -> int | None:
    """Return the bin of a magnitude, which is finite; None of zero, which needs none."""
    if largest == 0:
        return None
    mantissa, octaves = math.frexp(largest)  # largest = mantissa · 2**octaves, 1/2 <= mantissa < 1
    twice = 2 * octaves - (2 if mantissa == 0.5 else 1 if mantissa <= _HALF_OCTAVE else 0)
    return min(max(twice - LOWEST, 0), BINS - 1)


def one_hot(largest: Sequence[float]) -> NDArray[np.float64]:
    """Return what a site counts: a one in the bin of each tensor that is not zero, (tensors, `BINS`)."""
    counts = np.zeros((len(largest), BINS))
    for row, value in zip(counts, largest, strict=True):
        place = bin_of(value)
        if place is not None:
            row[place] = 1
    return counts


#: No weighted value may be larger: there is no bin for it.
LARGEST = bound_of(BINS - 1)
