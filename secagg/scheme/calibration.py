"""The plaintext of a calibration: a count of sites, and for each tensor that is sent the counts of its bins."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from .aggregation import Aggregation
from .capacity import fitting_lanes
from .flat_vector import FlatVector
from .lanes import Lanes
from .params import Params, QuantisedParams
from .scales import BINS

#: A site counts one, or none.
COUNT_LIMIT = 1


class CalibrationCodec:
    """Counts in lanes.

    Parameters
    ----------
    params : QuantisedParams
        The moduli.
    aggregation : Aggregation
        Lanes are planned for its ``max_clients``.
    tensors : int
        How many are sent.

    Attributes
    ----------
    blocks : int
        Plaintext blocks.

    Raises
    ------
    ConfigError
        If the scheme is no exact one, or sums could wrap.
    """

    def __init__(self, params: Params, aggregation: Aggregation, tensors: int) -> None:
        if not isinstance(params, QuantisedParams):
            raise ConfigError(f"there is nothing to calibrate in {params.scheme}: give max_abs")
        self._lanes = fitting_lanes(params, COUNT_LIMIT, aggregation.max_clients)
        self._tensors = tensors
        self.blocks = -(-(1 + tensors * BINS) // self._lanes.block_values)

    def encoder(self, counts: NDArray[np.float64]) -> CountsEncoder:
        """Begin a calibration of what one site has counted, (tensors, `BINS`)."""
        return CountsEncoder(FlatVector([np.concatenate([[1.0], counts.ravel()])]), self._lanes)

    def decode(self, words: NDArray[np.uint64], sites: int) -> NDArray[np.float64] | None:
        """Return what `sites` sites have counted, (tensors, `BINS`); None if so many cannot have counted that."""
        values = np.empty(1 + self._tensors * BINS)
        over = FlatVector([values]).dequantise(0, words, self._lanes, [1.0], sites) >= 0
        counts = values[1:].reshape(self._tensors, BINS)
        fits = values[0] == sites and bool((counts >= 0).all()) and bool((counts.sum(axis=1) <= sites).all())
        return counts if fits and not over else None


class CountsEncoder:
    """A calibration on its way in; see `secagg.scheme.codec.Encoder`."""

    clipped = 0

    def __init__(self, source: FlatVector, lanes: Lanes) -> None:
        self._source, self._lanes = source, lanes

    def encode(self, block: int, blocks: int) -> NDArray[np.uint64]:
        """Return words of whole blocks."""
        words, start = np.empty(blocks * self._lanes.words, dtype=np.uint64), block * self._lanes.block_values
        clipped = np.zeros(1, dtype=np.int64)
        self._source.quantise(start, words, self._lanes, [1.0], [1.0], [float(COUNT_LIMIT)], clipped, None, None)
        return words
