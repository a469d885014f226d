"""Exact schemes: values rounded to integers, several lanes of them in a plaintext word.

With limit L = 2**(value_bits − 1) − 1 and step Δ = ``max_abs`` / L of a tensor, a value x of a site of weight w
becomes q = round(x · w/``max_weight`` / Δ). Sums of q are exact, so all that a mean loses is rounding: with
W = Σ wᵢ/``max_weight`` over n sites its error is at most n·Δ/W under stochastic rounding, which is unbiased and has a
standard deviation of at most Δ·√n/(2·W); and at most n·Δ/(2·W) under rounding to nearest.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, DecryptionError, RangeError
from .aggregation import Aggregation
from .flat_vector import FlatVector
from .lanes import Lanes, lane_bits, lanes_below, largest_word
from .noise import bgv_fits
from .params import FLASHE_BLOCK_WORDS, BGVParams, QuantisedParams, prime_floor

#: The weight is a whole number of at least so many bits.
WEIGHT_BITS = 40

#: Room for the rounding of products, relative, when a value is held against its bound.
_SLACK = 1 + 2.0**-48


class IntegerCodec:
    """Quantised values in lanes.

    Construction proves that no sum of ``max_clients`` updates carries from a lane into the next, or wraps modulo the
    plain modulus, and, of BGV, that the noise of such a sum stays below q/2.

    Parameters
    ----------
    params : BGVParams or FLASHEParams
        ``value_bits`` and the moduli.
    aggregation : Aggregation
        ``max_clients`` and ``max_abs`` are what the capacity is planned for.

    Raises
    ------
    ConfigError
        If the sum could wrap or drown in noise.
    """

    def __init__(self, params: QuantisedParams, aggregation: Aggregation) -> None:
        self._params = params
        self._aggregation = aggregation
        self._sites = aggregation.max_clients
        for bound in aggregation.bounds:
            if not 1e-290 <= bound <= 1e290:  # else steps and their inverses leave the range of float64
                raise ConfigError(f"aggregation.max_abs {bound:g} cannot be quantised: use 1e-290 to 1e290")
        bits = lane_bits(params.limit, self._sites)
        if isinstance(params, BGVParams):
            plain_bits = params.plain_modulus_bits
            count, words = lanes_below(prime_floor(plain_bits), params.limit, self._sites), params.slot_count
            if not count:
                needed = bits + (prime_floor(bits) <= largest_word(params.limit, self._sites, 1))
                raise ConfigError(
                    f"value_bits {params.value_bits} from max_clients {self._sites} need {needed} bits, "
                    f"plain_modulus_bits is {plain_bits}: lower value_bits or max_clients, or raise plain_modulus_bits"
                )
            floors = tuple(prime_floor(size) for size in params.coeff_mod_bit_sizes)
            self._check_noise(params, floors, 1 << plain_bits)
        else:
            count, words = lanes_below(1 << 64, params.limit, self._sites), FLASHE_BLOCK_WORDS
        self.lanes = Lanes(words, count, bits, params.limit)
        self.block_values = self.lanes.block_values
        # The weight as digits, each of which is a value like any other, and a 1 that counts the sites.
        digits = -(-WEIGHT_BITS // (params.value_bits - 1))
        self.weight_values = digits + 1
        self._weight_unit = (1 << digits * (params.value_bits - 1)) - 1

    def check_moduli(self, primes: tuple[int, ...], plain_modulus: int) -> None:
        """Raise `ConfigError` if what was proved from the moduli's bits does not hold for the moduli themselves."""
        if isinstance(self._params, BGVParams):
            lanes = self.lanes
            if lanes_below(plain_modulus, lanes.limit, self._sites) < lanes.per_word:
                raise ConfigError(
                    f"the key's plain modulus {plain_modulus} is too small for {lanes.per_word} lanes of {lanes.bits} "
                    "bits: raise plain_modulus_bits"
                )
            self._check_noise(self._params, primes, plain_modulus)

    def check_fraction(self, fraction: float) -> None:
        """Raise `RangeError` if a weight is too small to be encoded."""
        if not round(fraction * self._weight_unit):
            raise RangeError(f"a weight of {fraction:g} of aggregation.max_weight rounds to nothing; lower max_weight")

    def encoder(
        self,
        vectors: Sequence[NDArray[Any]],
        bounds: Sequence[float],
        fraction: float,
        residuals: Sequence[NDArray[np.float32]] | None = None,
    ) -> IntegerEncoder:
        """Begin an update; see `secagg.scheme.codec.Codec`.

        `residuals`, one a vector, in units of a step, are added to the values and replaced by what is dropped. What is
        due may exceed a bound by less than a step: else the part of a step below the bound would never be sent.
        """
        weight = round(fraction * self._weight_unit)
        limit = self.lanes.limit
        width = limit.bit_length()
        digits = [weight >> width * place & limit for place in range(self.weight_values - 1)]
        head = np.array([*digits, 1], dtype=np.float64)
        cap = fraction * limit * _SLACK
        if residuals is not None:
            residuals = [np.zeros(head.size, np.float32), *residuals]
        seed = secrets.randbits(64) if self._params.rounding == "stochastic" else None
        return IntegerEncoder(
            self,
            FlatVector([head, *vectors]),
            [1.0, *(fraction * limit / bound for bound in bounds)],
            [float(limit), *(cap for _ in bounds)],
            seed,
            residuals,
        )

    def decoder(self, targets: Sequence[NDArray[Any]], bounds: Sequence[float], sites: int) -> IntegerDecoder:
        """Begin a mean; see `secagg.scheme.codec.Codec`."""
        return IntegerDecoder(self, targets, [bound / self.lanes.limit for bound in bounds], sites)

    def mean_error(self, sites: int, weight_sum: float, bound: float | None = None) -> float:
        """Return n·Δ/W, or half of it if values are rounded to the nearest; see `secagg.scheme.codec.Codec`.

        With error feedback it is n·Δ/W too, beside what earlier updates dropped and this one makes good.
        """
        largest = max(self._aggregation.bounds) if bound is None else bound
        step = largest / self.lanes.limit
        each = step / 2 if self._params.rounding == "nearest" and not self._params.error_feedback else step
        # The weights are rounded as well, to half of 2**-WEIGHT_BITS at most.
        return sites * (each + largest * 2.0**-WEIGHT_BITS) / weight_sum if weight_sum > 0 else math.inf

    def read_weight(self, head: NDArray[np.float64], sites: int) -> float:
        """Return the sum of the weights from the sums of the first values.

        Raises
        ------
        DecryptionError
            If it is the sum of another number of sites, which would shift every value; if so many sites cannot give
            that weight; or if it is so small that rounding is everything.
        """
        *digits, count = head.tolist()
        width, limit = self.lanes.limit.bit_length(), self.lanes.limit
        weight_sum = sum(int(digit) << width * place for place, digit in enumerate(digits)) / self._weight_unit
        if count != sites or not 0 < weight_sum <= sites or sites > weight_sum * limit:
            raise DecryptionError
        return weight_sum

    def _check_noise(self, params: BGVParams, primes: tuple[int, ...], plain_modulus: int) -> None:
        data = params.data_primes(primes)
        special = primes[-1] if params.has_special_prime else None
        degree = params.poly_modulus_degree
        if not bgv_fits(self._sites, degree, plain_modulus, data, special, params.seeded):
            raise ConfigError(
                f"the noise of the sum of max_clients {self._sites} updates could reach half of the data primes "
                f"{list(params.data_bit_sizes)} at plain_modulus_bits {params.plain_modulus_bits}"
                f"{'' if params.seeded else ' (public-key ciphertexts, as the config is not seeded)'}: lower "
                "max_clients or plain_modulus_bits, use larger coeff_mod_bit_sizes, or leave all three out to have "
                "them planned"
            )


class IntegerEncoder:
    """The encrypted section of one update on its way in."""

    def __init__(
        self,
        codec: IntegerCodec,
        source: FlatVector,
        factors: list[float],
        caps: list[float],
        seed: int | None,
        residuals: Sequence[NDArray[np.float32]] | None,
    ) -> None:
        self._codec, self._source, self._factors, self._caps = codec, source, factors, caps
        self._drawn, self._residuals = seed, residuals
        self.seed = seed or 0
        self.clipped = 0

    def encode(self, block: int, blocks: int) -> NDArray[np.uint64]:
        """Return words of whole blocks; see `secagg.scheme.codec.Encoder`."""
        codec = self._codec
        words = np.empty(blocks * codec.lanes.words, dtype=np.uint64)
        self.clipped += self._source.quantise(
            block * codec.block_values, words, codec.lanes, self._factors, self._caps, self._drawn, self._residuals
        )
        return words


class IntegerDecoder:
    """The encrypted section of one aggregate on its way out."""

    def __init__(
        self, codec: IntegerCodec, targets: Sequence[NDArray[Any]], steps: Sequence[float], sites: int
    ) -> None:
        self._codec, self._steps, self._sites = codec, steps, sites
        self._head = np.empty(codec.weight_values)
        self._targets = FlatVector([self._head, *targets])
        self._factors = [1.0, *(0.0 for _ in steps)]
        self.weight_sum = 1.0  # what comes behind an implausible weight is decoded all the same, and dropped

    def decode(self, block: int, plain: NDArray[np.uint64]) -> None:
        """Write the mean of whole blocks; see `secagg.scheme.codec.Decoder`."""
        codec, start = self._codec, block * self._codec.block_values
        if block == 0:
            FlatVector([self._head]).dequantise(start, plain, codec.lanes, [1.0], self._sites)
            self.weight_sum = codec.read_weight(self._head, self._sites)
            self._factors[1:] = [step / self.weight_sum for step in self._steps]
        if self._targets.dequantise(start, plain, codec.lanes, self._factors, self._sites) >= 0:
            raise DecryptionError
