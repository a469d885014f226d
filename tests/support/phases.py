"""What decryption computes before it reduces modulo t, c0 + c1·s modulo q, done here in Python's integers."""

from __future__ import annotations

import itertools
import math
from functools import cache

import numpy as np


@cache
def inverse_roots(prime, degree):
    """Powers of the inverse of SEAL's root of unity, the least primitive one, in bit-reversed order."""
    base = next(g for g in itertools.count(2) if pow(g, (prime - 1) // 2, prime) == prime - 1)
    root = pow(base, (prime - 1) // (2 * degree), prime)
    least, power, square = root, root, root * root % prime
    for _ in range(degree - 1):
        power = power * square % prime
        least = min(least, power)
    inverse, bits = pow(least, -1, prime), degree.bit_length() - 1
    powers = list(itertools.accumulate(range(degree - 1), lambda power, _: power * inverse % prime, initial=1))
    return np.array([powers[int(f"{index:0{bits}b}"[::-1], 2)] for index in range(degree)], dtype=object)


def coefficients(row, prime):
    """The coefficients of a polynomial from its words in NTT form, 0 to prime − 1."""
    degree = row.size
    roots, values = inverse_roots(prime, degree), row.astype(object)
    groups, width = degree // 2, 1
    while groups:
        pairs = values.reshape(groups, 2, width)
        low, high = pairs[:, 0], pairs[:, 1]
        factors = roots[groups : 2 * groups, None]
        values = np.stack([(low + high) % prime, (low - high) * factors % prime], axis=1).reshape(-1)
        groups, width = groups // 2, 2 * width
    return values * pow(degree, -1, prime) % prime


def phase(words, secret, primes):
    """Message plus noise, coefficient by coefficient, from −q/2 to q/2.

    `words` are those of a block, `secret` of the secret key, with a row for each of the data primes, or more.
    """
    q, rows = math.prod(primes), words.reshape(2, len(primes), -1)
    total = np.zeros(rows.shape[-1], dtype=object)
    for c0, c1, s, prime in zip(*rows, secret, primes, strict=False):
        row = coefficients((c0.astype(object) + c1.astype(object) * s.astype(object)) % prime, prime)
        total += row * (q // prime) * pow(q // prime, -1, prime)
    total %= q
    return np.where(total > q // 2, total - q, total)
