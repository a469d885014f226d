"""CKKS: one real value a slot, or two in a complex slot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, RangeError
from .aggregation import Aggregation
from .flat_vector import FlatVector
from .noise import TAIL, ckks_coefficient_bound, ckks_slot_deviation
from .params import CKKSParams
from .scales import Scales

#: Bits of precision of a mean below which a configuration is refused.
MIN_PRECISION_BITS = 4

Array = NDArray[Any]


class RealCodec:
    """CKKS: one real value a slot, or two in a complex slot.

    Construction proves that the sum of ``max_clients`` updates can neither wrap modulo q nor drown in noise.

    Parameters
    ----------
    params : CKKSParams
        CKKS params.
    aggregation : Aggregation
        ``max_clients`` and ``max_abs`` are what the capacity is planned for.

    Raises
    ------
    ConfigError
        If the sum could wrap, or fewer than four bits of the mean would survive the noise.
    """

    def __init__(self, params: CKKSParams, aggregation: Aggregation) -> None:
        self._params = params
        self._largest_weight = aggregation.largest_weight
        self._largest = max(1.0, *aggregation.bounds)  # the weight, at most 1, is a value like any other
        self._smallest = min(aggregation.bounds)
        self.block_values = params.slot_count * (2 if params.complex_slots else 1)
        self._check_capacity(aggregation)
        self._check_precision(aggregation)

    def is_precise(self, sites: int, weight_sum: float) -> bool:
        """Return whether four bits of the smallest ``max_abs`` survive the noise; parameters as of `mean_error`."""
        return self.mean_error(sites, weight_sum) <= self._smallest * 2.0**-MIN_PRECISION_BITS

    def check_moduli(self, primes: tuple[int, ...], plain_modulus: int) -> None:
        """Do nothing: what was proved holds for all primes of the right bits."""

    def check_weight(self, weight: float) -> None:
        """Raise `RangeError` if a weight is nothing beside ``max_weight``."""
        if weight / self._largest_weight == 0:
            raise RangeError(
                f"weight {weight} is nothing beside aggregation.max_weight {self._largest_weight:g}; lower max_weight"
            )

    def draw(self) -> int | None:
        """Return None: nothing is drawn here."""
        return None

    def blocks(self, shapes: Sequence[tuple[int, ...]], tensors: int) -> int:
        """Return the number of blocks of a section; see `secagg.scheme.codec.Codec`."""
        return -(-(1 + sum(map(math.prod, shapes))) // self.block_values)

    def encoder(
        self,
        vectors: Sequence[Array],
        shapes: Sequence[tuple[int, ...]],
        bounds: Sequence[float],
        weight: float,
        scales: Scales | None = None,
        counts: NDArray[np.float64] | None = None,
        residuals: Sequence[NDArray[np.float32]] | None = None,
        seed: int | None = None,
    ) -> RealEncoder:
        """Begin an update; see `secagg.scheme.codec.Codec`. Nothing is dropped, so there are no residuals."""
        # A constant 1, which the weight turns into the weight itself.
        fraction = weight / self._largest_weight
        return RealEncoder(self, FlatVector([np.ones(1), *vectors], [1.0, *bounds]), fraction)

    def decoder(
        self,
        targets: Sequence[Array],
        shapes: Sequence[tuple[int, ...]],
        places: Sequence[int],
        bounds: Sequence[float],
        sites: int,
    ) -> RealDecoder:
        """Begin a mean; see `secagg.scheme.codec.Codec`."""
        weighted = [bound * self._largest_weight for bound in bounds]
        return RealDecoder(self, FlatVector([np.empty(1), *targets]), sites, self._largest_weight, weighted)

    def to_slots(self, values: NDArray[np.float64]) -> NDArray[Any]:
        """Return real values as slots."""
        return values.view(np.complex128) if self._params.complex_slots else values

    def sum_error(self, sites: int) -> float:
        """Return a bound on the absolute error of any value of the sum of `sites` updates.

        It holds but with probability 2**-40 a value. Double precision adds about 2**-46 of the largest value for each
        transform.
        """
        noise = TAIL * math.sqrt(sites) * ckks_slot_deviation(self._params)
        return noise + 2.0**-46 * self._largest * (sites + 1)

    def mean_error(self, sites: int, weight_sum: float, bound: float | None = None) -> float:
        """Return a bound on the absolute error of any value of the mean; see `secagg.scheme.codec.Codec`."""
        error = self.sum_error(sites)
        if weight_sum <= error:
            return math.inf
        return error * (1 + self._largest) / (weight_sum - error)

    def _check_capacity(self, aggregation: Aggregation) -> None:
        """Refuse sums that could reach q/2 in a coefficient.

        A coefficient of the plaintext is at most the largest slot times the scale (the inverse embedding is an
        average of unit-modulus multiples of the slots); the noise is bounded in the worst case.
        """
        params, sites = self._params, aggregation.max_clients
        slot = self._largest * (math.sqrt(2) if params.complex_slots else 1)
        noise = ckks_coefficient_bound(params)
        needed = math.log2(sites) + math.log2(slot * 2.0**params.scale_bits + noise + 0.5)
        # A prime of b bits is above 2**(b - 1); half of q is for negative values.
        available = sum(bits - 1 for bits in params.data_bit_sizes) - 1
        if needed >= available:
            raise ConfigError(
                f"the sum of max_clients {sites} updates of max_abs {self._largest:g} at scale_bits "
                f"{params.scale_bits} needs {needed:.1f} bits, the data primes {list(params.data_bit_sizes)} hold "
                f"{available}: lower scale_bits, max_abs or max_clients, or use larger coeff_mod_bit_sizes"
            )

    def _check_precision(self, aggregation: Aggregation) -> None:
        sites = aggregation.max_clients
        if not self.is_precise(sites, float(sites)):
            raise ConfigError(
                f"at scale_bits {self._params.scale_bits} the mean of {sites} updates has an error of up to "
                f"{self.mean_error(sites, float(sites)):.2g}, too much for max_abs {self._smallest:g}: "
                "raise scale_bits or max_abs"
            )


class RealEncoder:
    """The encrypted section of one update on its way in."""

    def __init__(self, codec: RealCodec, source: FlatVector, fraction: float) -> None:
        self._codec, self._source, self._fraction = codec, source, fraction
        self.clipped = 0

    def encode(self, block: int, blocks: int) -> NDArray[Any]:
        """Return slots of whole blocks; see `secagg.scheme.codec.Encoder`."""
        size = self._codec.block_values
        values = np.empty(blocks * size)
        self.clipped += self._source.read(block * size, values, self._fraction) >= 0
        return self._codec.to_slots(values)


class RealDecoder:
    """The encrypted section of one aggregate on its way out; attributes as of `secagg.scheme.codec.Decoder`."""

    def __init__(
        self, codec: RealCodec, targets: FlatVector, sites: int, largest_weight: float, bounds: list[float]
    ) -> None:
        self._codec, self._targets, self._sites, self._largest_weight = codec, targets, sites, largest_weight
        self.fault: str | None = None
        self.weight_sum = largest_weight
        self.bounds = bounds
        self.scales: Scales | None = None

    def decode(self, block: int, plain: NDArray[Any]) -> None:
        """Write the mean of whole blocks; see `secagg.scheme.codec.Decoder`."""
        values = plain.view(np.float64)
        if block == 0:
            self._read_weight(float(values[0]))
        self._targets.write(block * self._codec.block_values, values, self._largest_weight / self.weight_sum)

    def finish(self) -> None:
        """Do nothing: all is written."""

    def following(self) -> None:
        """Return None: nothing is measured."""

    def _read_weight(self, fraction: float) -> None:
        """Take the weight, unless it is what so many sites cannot give, or noise could have made."""
        sites = self._sites
        if not fraction <= sites + self._codec.sum_error(sites):
            self.fault = f"the sum of weights is {fraction:g} times aggregation.max_weight"
        elif not self._codec.is_precise(sites, fraction):
            self.fault = (
                f"the sum of weights, {fraction * self._largest_weight:g}, is none, or far below aggregation.max_weight"
                f" {self._largest_weight:g}, and lost in noise: lower max_weight"
            )
        else:
            self.weight_sum = fraction * self._largest_weight
