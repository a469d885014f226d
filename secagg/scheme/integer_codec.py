"""Exact schemes: values rounded to integers, several lanes of them in a plaintext word.

A site of weight w sends y = w·x + r of each value x, with the residual r that its earlier updates have left there. With
limit L = 2**(value_bits − 1) − 1 and the bound b of a tensor, ``max_abs`` · ``max_weight`` or what a calibration has
measured, the step is Δ = b / L and y becomes q = round(y / Δ). Sums of q are exact, so all that a mean loses is
rounding: with W = Σ wᵢ over n sites its error is at most n·Δ/W under stochastic rounding, which is unbiased and has a
standard deviation of at most Δ·√n/(2·W); and at most n·Δ/(2·W) under rounding to nearest.

Small tensors (`secagg.scheme.digits`) have L = ((2·limit + 1)**d − 1)/2 with d lanes a value, and are rounded to the
nearest in any case. What lies where, `secagg.scheme.integer_form` says.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RangeError
from .aggregation import Aggregation
from .calibration import COUNT_LIMIT
from .capacity import check_moduli, fitting_lanes
from .integer_decoder import IntegerDecoder
from .integer_encoder import IntegerEncoder
from .integer_form import IntegerForm
from .params import QuantisedParams
from .scales import Scales


class IntegerCodec(IntegerForm):
    """Quantised values in lanes.

    Construction proves that no sum of ``max_clients`` updates carries from a lane into the next, or wraps modulo the
    plain modulus, and, of BGV, that the noise of such a sum stays below q/2.

    Parameters
    ----------
    params : BGVParams or FLASHEParams
        ``value_bits`` and the moduli.
    aggregation : Aggregation
        ``max_clients`` is what the capacity is planned for.

    Raises
    ------
    ConfigError
        If the sum could wrap or drown in noise.
    """

    def __init__(self, params: QuantisedParams, aggregation: Aggregation) -> None:
        super().__init__(params, aggregation)
        self._params, self._sites, self._bounds = params, aggregation.max_clients, aggregation.bounds
        self._stochastic = params.rounding == "stochastic"

    def check_moduli(self, primes: tuple[int, ...], plain_modulus: int) -> None:
        """Raise `ConfigError` if what was proved from the moduli's bits does not hold for the moduli themselves."""
        check_moduli(self._params, self.lanes, self._sites, primes, plain_modulus)
        if self.calibrated:  # the lanes of calibrations are others, and their words may be larger
            counts = fitting_lanes(self._params, COUNT_LIMIT, self._sites)
            check_moduli(self._params, counts, self._sites, primes, plain_modulus)

    def check_weight(self, weight: float) -> None:
        """Raise `RangeError` if a weight is too small to be encoded."""
        if not self.whole_weight(weight):
            raise RangeError(
                f"a weight of {weight:g} rounds to nothing beside aggregation.max_weight {self.largest_weight:g}; "
                "lower max_weight"
            )

    def draw(self) -> int | None:
        """Return the seed of the rounding of an update, below 2**64; None where nothing is drawn."""
        return secrets.randbits(64) if self._stochastic else None

    def encoder(
        self,
        vectors: Sequence[NDArray[Any]],
        shapes: Sequence[tuple[int, ...]],
        bounds: Sequence[float],
        weight: float,
        scales: Scales | None = None,
        counts: NDArray[np.float64] | None = None,
        residuals: Sequence[NDArray[np.float32]] | None = None,
        seed: int | None = None,
    ) -> IntegerEncoder:
        """Begin an update; see `secagg.scheme.codec.Codec`.

        `residuals`, one a vector, in units of weighted values, are added to these and replaced by what is dropped. What
        is due may exceed a bound by less than a step: else the part of a step below the bound would never be sent.
        """
        return IntegerEncoder(self, vectors, shapes, bounds, weight, scales, counts, residuals, seed)

    def decoder(
        self,
        targets: Sequence[NDArray[Any]],
        shapes: Sequence[tuple[int, ...]],
        places: Sequence[int],
        bounds: Sequence[float],
        sites: int,
    ) -> IntegerDecoder:
        """Begin a mean; see `secagg.scheme.codec.Codec`."""
        return IntegerDecoder(self, targets, shapes, places, bounds, sites)

    def mean_error(self, sites: int, weight_sum: float, bound: float | None = None) -> float:
        """Return n·Δ/W, or half of it if values are rounded to the nearest; see `secagg.scheme.codec.Codec`.

        With error feedback it is n·Δ/W too, beside what earlier updates dropped and this one makes good.
        """
        largest = max(self._bounds) if bound is None else bound
        step = largest / self.lanes.limit
        each = step if self._stochastic or self._params.error_feedback else step / 2
        if weight_sum <= 0:
            return math.inf
        # Weights are rounded too, each to half of a unit, and what they are multiplied by is at most this:
        mean, unit = (largest, 1.0) if not self.calibrated else (sites * largest / weight_sum, self.largest_weight)
        return sites * (each + mean * unit / self.weight.largest) / weight_sum
