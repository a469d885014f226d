"""Codecs: a float vector of one block to a plaintext block and back, with the proof that sums fit.

Sites scale values by ``weight / max_weight`` before they encode, so a block never holds more than ``max_abs`` and the
sum of n updates never more than ``n * max_abs``.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .config import Aggregation
from .errors import ConfigError
from .params import Params
from .ring import CLEAR_BLOCK_SIZE, CLEAR_RING

#: SEAL draws errors from a centred binomial distribution over 42 coin flips: at most 21, variance 10.5.
ERROR_BOUND = 21
ERROR_VARIANCE = 10.5

#: Standard deviations that no value exceeds but with probability 2**-40 (two-sided normal tail).
TAIL = 7.2

#: Bits of precision of a mean below which a configuration is refused.
MIN_PRECISION_BITS = 4


class RealCodec:
    """CKKS: one real value a slot.

    Construction proves that the sum of ``max_clients`` updates can neither wrap modulo q nor drown in noise.

    Parameters
    ----------
    params : Params
        CKKS params.
    aggregation : Aggregation
        ``max_clients`` and ``max_abs`` are what the capacity is planned for.

    Raises
    ------
    ConfigError
        If the sum could wrap, or fewer than four bits of the mean would survive the noise.
    """

    def __init__(self, params: Params, aggregation: Aggregation) -> None:
        self._params = params
        self._largest = max(1.0, *aggregation.bounds)  # the weight, at most 1, is a value like any other
        self._smallest = min(aggregation.bounds)
        self._check_capacity(aggregation)
        self._check_precision(aggregation)

    def is_precise(self, sites: int, weight_sum: float) -> bool:
        """Return whether four bits of the smallest ``max_abs`` survive the noise; parameters as of `mean_error`."""
        return self.mean_error(sites, weight_sum) <= self._smallest * 2.0**-MIN_PRECISION_BITS

    @property
    def block_size(self) -> int:
        """Values a block."""
        return self._params.slot_count

    def encode(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the slots of a block: the values themselves."""
        return values

    def decode(self, slots: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the values of a block."""
        return slots

    def sum_error(self, sites: int) -> float:
        """Return a bound on the absolute error of any value of the sum of `sites` updates.

        It holds but with probability 2**-40 a value. A coefficient of a fresh ciphertext has the error of the
        encryption and of the rounding to integers; the canonical embedding adds N of them into a slot, half of the
        variance in its real part. Double precision adds about 2**-46 of the largest value for each transform.
        """
        params = self._params
        ternary = 2 * params.poly_modulus_degree / 3  # expected squared norm of a ternary polynomial
        encryption = ERROR_VARIANCE * (2 * ternary + 1)  # public key: e*u + e0 + e1*s
        if params.has_special_prime:
            # SEAL encrypts under the whole chain and divides by the special prime, rounding both polynomials. That
            # is more than the plain error of a symmetric ciphertext, so it bounds both.
            encryption = encryption / 4.0 ** (params.coeff_mod_bit_sizes[-1] - 1) + (1 + ternary) / 12
        slot = (encryption + 1 / 12) * params.poly_modulus_degree / 2
        noise = TAIL * math.sqrt(sites * slot) / 2.0**params.scale_bits
        return noise + 2.0**-46 * self._largest * (sites + 1)

    def mean_error(self, sites: int, weight_sum: float) -> float:
        """Return a bound on the absolute error of any value of the mean.

        Parameters
        ----------
        sites : int
            Number of updates in the sum.
        weight_sum : float
            Sum of ``weight / max_weight``, in (0, sites].
        """
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
        degree = params.poly_modulus_degree
        noise = float((2 * degree + 1) * ERROR_BOUND)
        if params.has_special_prime:
            noise = noise / 2.0 ** (params.coeff_mod_bit_sizes[-1] - 1) + (degree + 1) / 2
        needed = math.log2(sites) + math.log2(self._largest * 2.0**params.scale_bits + noise + 0.5)
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


class FixedPointCodec:
    """Clear tensors: fixed-point words modulo 2**64, so that sums are exact in any order.

    Parameters
    ----------
    aggregation : Aggregation
        The binary point is placed so that ``max_clients`` values of ``max_abs`` stay below 2**63.

    Raises
    ------
    ConfigError
        If ``max_abs`` times ``max_clients`` leaves no bits for the fraction.
    """

    block_size = CLEAR_BLOCK_SIZE
    ring = CLEAR_RING

    def __init__(self, aggregation: Aggregation) -> None:
        largest = max(aggregation.bounds)
        self._fraction_bits = 62 - math.ceil(math.log2(aggregation.max_clients) + max(math.log2(largest), 0))
        if self._fraction_bits < 24:
            raise ConfigError(
                f"clear tensors of max_abs {largest:g} from max_clients {aggregation.max_clients} leave "
                f"{self._fraction_bits} bits for the fraction, fewer than a float32 has: lower max_abs or max_clients"
            )

    def encode(self, values: NDArray[np.float64]) -> NDArray[np.uint64]:
        """Return values as words, rounded to the nearest multiple of 2**-fraction_bits."""
        return np.rint(np.ldexp(values, self._fraction_bits)).astype(np.int64).view(np.uint64)

    def decode(self, words: NDArray[np.uint64]) -> NDArray[np.float64]:
        """Return words as values; words from 2**63 are negative."""
        return np.ldexp(words.view(np.int64).astype(np.float64), -self._fraction_bits)
