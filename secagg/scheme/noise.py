"""Noise of SEAL's ciphertexts: what it can be at most in BGV, and how large it is in CKKS.

SEAL draws errors from a centred binomial distribution over 42 coin flips. A symmetric ciphertext carries one error
polynomial. A public-key ciphertext carries e·u + e0 + e1·s under ternary u and s; with a special prime P SEAL
encrypts under the whole chain and divides by P, which rounds both polynomials.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from .params import CKKSParams

#: Largest coefficient of an error polynomial.
ERROR_BOUND = 21
ERROR_VARIANCE = 10.5

#: Standard deviations that no value exceeds but with probability 2**-40 (two-sided normal tail).
TAIL = 7.2


def bgv_noise(degree: int, plain_modulus: int, special_prime: int | None, symmetric: bool) -> int:
    """Return a bound on the noise of a fresh BGV ciphertext, its message included, in units of the plaintext.

    Parameters
    ----------
    degree : int
        N.
    plain_modulus : int
        t; the message is at most t/2, and every error is a multiple of t.
    special_prime : int or None
        P, if the chain has one. Dividing by it leaves a multiple of t below t in each coefficient of both polynomials,
        and a rest below 1.
    symmetric : bool
        Whether the ciphertext was encrypted under the secret key.
    """
    public = (2 * degree + 1) * ERROR_BOUND
    if symmetric:
        errors = ERROR_BOUND
    elif special_prime is None:
        errors = public
    else:
        errors = -(-public // special_prime) + degree + 1
    return plain_modulus * errors + -(-plain_modulus // 2)


def bgv_fits(
    sites: int,
    degree: int,
    plain_modulus: int,
    data_primes: Sequence[int],
    special_prime: int | None,
    symmetric: bool,
) -> bool:
    """Return whether the sum of `sites` BGV ciphertexts surely decrypts: its noise stays below q/2."""
    return 2 * sites * bgv_noise(degree, plain_modulus, special_prime, symmetric) < math.prod(data_primes)


def ckks_coefficient_bound(params: CKKSParams) -> float:
    """Return a bound on the error of any coefficient of a fresh CKKS ciphertext, in units of the scaled plaintext."""
    degree = params.poly_modulus_degree
    if params.seeded:
        return float(ERROR_BOUND)
    public = float((2 * degree + 1) * ERROR_BOUND)
    if params.has_special_prime:
        return public / 2.0 ** (params.coeff_mod_bit_sizes[-1] - 1) + (degree + 1) / 2
    return public


def ckks_slot_deviation(params: CKKSParams) -> float:
    """Return the standard deviation of a real part of a slot of a fresh CKKS ciphertext, in units of the values.

    A coefficient has the error of the encryption and of the rounding to integers; the canonical embedding adds N of
    them into a slot, half of the variance in its real part.
    """
    degree = params.poly_modulus_degree
    ternary = 2 * degree / 3  # expected squared norm of a ternary polynomial
    encryption = ERROR_VARIANCE
    if not params.seeded:  # public key perhaps: seeds belong to symmetric encryption
        encryption *= 2 * ternary + 1
        if params.has_special_prime:  # more than the plain error of a symmetric ciphertext, so it bounds both
            encryption = encryption / 4.0 ** (params.coeff_mod_bit_sizes[-1] - 1) + (1 + ternary) / 12
    return math.sqrt((encryption + 1 / 12) * degree / 2) / 2.0**params.scale_bits
