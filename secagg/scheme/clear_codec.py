"""Clear tensors: fixed-point words modulo 2**64, so that sums are exact in any order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .aggregation import Aggregation
from .flat_vector import FlatVector
from .ring import CLEAR_BLOCK_SIZE

#: By so many bits a value may exceed what was measured: what is clear has no residual that could take it.
HEADROOM_BITS = 16


class FixedPointCodec:
    """Weighted values to words and back.

    A value becomes round(w·x / b · 2**f) with the bound b of its tensor, so that the sum of ``max_clients`` of them
    stays below 2**63, also where values exceed a measured bound.

    Parameters
    ----------
    aggregation : Aggregation
        Its ``max_clients``.
    """

    def __init__(self, aggregation: Aggregation) -> None:
        headroom = HEADROOM_BITS if aggregation.calibrated else 0
        self._most = 2.0**headroom
        self._fraction_bits = 62 - headroom - math.ceil(math.log2(aggregation.max_clients))

    def encoder(
        self, vectors: Sequence[NDArray[Any]], limits: Sequence[float], bounds: Sequence[float], weight: float
    ) -> ClearEncoder:
        """Begin the clear section of an update.

        Parameters
        ----------
        vectors : sequence of ndarray
            The tensors.
        limits : sequence of float
            The largest magnitude of a value of each, ``max_abs``; infinity where scales are measured.
        bounds : sequence of float
            The largest magnitude of a weighted value of each; 0 where nothing is known of it, and nothing sent.
        weight : float
            Of the site.
        """
        return ClearEncoder(vectors, limits, bounds, weight, self._fraction_bits, self._most)

    def decoder(self, targets: Sequence[NDArray[Any]]) -> ClearDecoder:
        """Begin the mean of the clear tensors."""
        return ClearDecoder(targets, self._fraction_bits)


class ClearEncoder:
    """The clear section of one update on its way in."""

    def __init__(
        self,
        vectors: Sequence[NDArray[Any]],
        limits: Sequence[float],
        bounds: Sequence[float],
        weight: float,
        fraction_bits: int,
        most: float,
    ) -> None:
        self._source = FlatVector(vectors, [min(limit, np.finfo(np.float64).max) for limit in limits])
        self._ends = np.cumsum([0, *(vector.size for vector in vectors)])
        self._bounds, self._weight, self._bits, self._most = list(bounds), weight, fraction_bits, most
        self.clipped = 0

    def encode(self, block: int, blocks: int) -> NDArray[np.uint64]:
        """Return words of whole blocks; see `secagg.scheme.codec.Encoder`."""
        start, values = block * CLEAR_BLOCK_SIZE, np.empty(blocks * CLEAR_BLOCK_SIZE)
        self.clipped += self._source.read(start, values, self._weight) >= 0
        for part, bound in _parts(values, start, self._ends, self._bounds):
            part[:] = np.clip(part / bound, -self._most, self._most) if bound else 0
        with np.errstate(invalid="ignore"):  # a NaN is counted above, and nothing of it is sent
            return np.rint(np.ldexp(values, self._bits)).astype(np.int64).view(np.uint64)


class ClearDecoder:
    """The clear section of one aggregate on its way out."""

    def __init__(self, targets: Sequence[NDArray[Any]], fraction_bits: int) -> None:
        self._targets, self._bits = FlatVector(targets), fraction_bits
        self._ends = np.cumsum([0, *(target.size for target in targets)])

    def decode(self, block: int, words: NDArray[np.uint64], bounds: Sequence[float], weight_sum: float) -> None:
        """Write the mean of whole blocks from the one of index `block`, by the bounds of weighted values."""
        start = block * CLEAR_BLOCK_SIZE
        values = np.ldexp(words.view(np.int64).astype(np.float64), -self._bits)
        for part, bound in _parts(values, start, self._ends, bounds):
            part *= bound
        self._targets.write(start, values, 1 / weight_sum)


def _parts(
    values: NDArray[np.float64], start: int, ends: NDArray[np.int64], bounds: Sequence[float]
) -> list[tuple[NDArray[np.float64], float]]:
    """Return what of a stretch of values, from position `start`, is of each tensor, with its bound."""
    first = max(int(np.searchsorted(ends, start, side="right")) - 1, 0)
    parts = []
    for index in range(first, len(bounds)):
        low, high = max(int(ends[index]) - start, 0), min(int(ends[index + 1]) - start, values.size)
        if low >= values.size:
            break
        parts.append((values[low:high], bounds[index]))
    return parts
