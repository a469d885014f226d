"""Clear tensors: fixed-point words modulo 2**64, so that sums are exact in any order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from .aggregation import Aggregation
from .flat_vector import FlatVector
from .ring import CLEAR_BLOCK_SIZE


class FixedPointCodec:
    """Values to words and back.

    Parameters
    ----------
    aggregation : Aggregation
        The binary point is placed so that ``max_clients`` values of ``max_abs`` stay below 2**63.

    Raises
    ------
    ConfigError
        If ``max_abs`` times ``max_clients`` leaves no bits for the fraction.
    """

    def __init__(self, aggregation: Aggregation) -> None:
        largest = max(aggregation.bounds)
        self._fraction_bits = 62 - math.ceil(math.log2(aggregation.max_clients) + max(math.log2(largest), 0))
        if self._fraction_bits < 24:
            raise ConfigError(
                f"clear tensors of max_abs {largest:g} from max_clients {aggregation.max_clients} leave "
                f"{self._fraction_bits} bits for the fraction, fewer than a float32 has: lower max_abs or max_clients"
            )

    def to_words(self, values: NDArray[np.float64]) -> NDArray[np.uint64]:
        """Return values as words, rounded to the nearest multiple of 2**-fraction_bits."""
        return np.rint(np.ldexp(values, self._fraction_bits)).astype(np.int64).view(np.uint64)

    def to_values(self, words: NDArray[np.uint64]) -> NDArray[np.float64]:
        """Return words as values; words from 2**63 are negative."""
        return np.ldexp(words.view(np.int64).astype(np.float64), -self._fraction_bits)

    def encoder(self, vectors: Sequence[NDArray[Any]], bounds: Sequence[float], fraction: float) -> ClearEncoder:
        """Begin the clear section of an update; see `secagg.scheme.codec.Codec.encoder`."""
        return ClearEncoder(self, FlatVector(vectors, bounds), fraction)

    def decode(self, block: int, words: NDArray[np.uint64], targets: FlatVector, weight_sum: float) -> None:
        """Write the mean of whole blocks from the one of index `block` to `targets`."""
        targets.write(block * CLEAR_BLOCK_SIZE, self.to_values(words), 1 / weight_sum)


class ClearEncoder:
    """The clear section of one update on its way in."""

    def __init__(self, codec: FixedPointCodec, source: FlatVector, fraction: float) -> None:
        self._codec, self._source, self._fraction = codec, source, fraction
        self.clipped = self.seed = 0

    def encode(self, block: int, blocks: int) -> NDArray[np.uint64]:
        """Return words of whole blocks; see `secagg.scheme.codec.Encoder`."""
        values = np.empty(blocks * CLEAR_BLOCK_SIZE)
        self.clipped += self._source.read(block * CLEAR_BLOCK_SIZE, values, self._fraction) >= 0
        return self._codec.to_words(values)
