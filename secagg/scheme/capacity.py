"""How many lanes a plaintext word of an exact scheme has room for, with the proof that no sum of them can wrap."""

from __future__ import annotations

from functools import lru_cache

from ..errors import ConfigError
from .lanes import Lanes, lane_bits, lanes_below, largest_word
from .noise import bgv_fits
from .params import FLASHE_BLOCK_WORDS, BGVParams, QuantisedParams, prime_floor


@lru_cache(maxsize=64)  # each header that is read or written asks for it, more than once
def fitting_lanes(params: QuantisedParams, limit: int, sites: int) -> Lanes:
    """Return the lanes in which sums of `sites` values of magnitude at most `limit` neither carry nor wrap.

    Raises
    ------
    ConfigError
        If not even one such sum fits, or, of BGV, the noise of a sum could reach q/2.
    """
    bits = lane_bits(limit, sites)
    if not isinstance(params, BGVParams):
        return Lanes(FLASHE_BLOCK_WORDS, lanes_below(1 << 64, limit, sites), bits, limit)
    plain_bits = params.plain_modulus_bits
    count = lanes_below(prime_floor(plain_bits), limit, sites)
    if not count:
        needed = bits + (prime_floor(bits) <= largest_word(limit, sites, 1))
        raise ConfigError(
            f"value_bits {params.value_bits} from max_clients {sites} need {needed} bits, plain_modulus_bits is "
            f"{plain_bits}: lower value_bits or max_clients, or raise plain_modulus_bits"
        )
    _check_noise(params, sites, tuple(prime_floor(size) for size in params.coeff_mod_bit_sizes), 1 << plain_bits)
    return Lanes(params.slot_count, count, bits, limit)


def check_moduli(
    params: QuantisedParams, lanes: Lanes, sites: int, primes: tuple[int, ...], plain_modulus: int
) -> None:
    """Raise `ConfigError` if what was proved from the moduli's bits does not hold for the moduli themselves."""
    if isinstance(params, BGVParams):
        if lanes_below(plain_modulus, lanes.limit, sites) < lanes.per_word:
            raise ConfigError(
                f"the key's plain modulus {plain_modulus} is too small for {lanes.per_word} lanes of {lanes.bits} "
                "bits: raise plain_modulus_bits"
            )
        _check_noise(params, sites, primes, plain_modulus)


def _check_noise(params: BGVParams, sites: int, primes: tuple[int, ...], plain_modulus: int) -> None:
    data = params.data_primes(primes)
    special = primes[-1] if params.has_special_prime else None
    if not bgv_fits(sites, params.poly_modulus_degree, plain_modulus, data, special, params.seeded):
        raise ConfigError(
            f"the noise of the sum of max_clients {sites} updates could reach half of the data primes "
            f"{list(params.data_bit_sizes)} at plain_modulus_bits {params.plain_modulus_bits}"
            f"{'' if params.seeded else ' (public-key ciphertexts, as the config is not seeded)'}: lower "
            "max_clients or plain_modulus_bits, use larger coeff_mod_bit_sizes, or leave all three out to have "
            "them planned"
        )
