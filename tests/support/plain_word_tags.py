"""Tags of ciphertext words once more, in Python's integers, from docs/wire-format.md alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes


def samples(key: bytes, modulus: int) -> Iterator[int]:
    """The words below a modulus of the keystream of a key, without end."""
    encryptor = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
    mask = 2 ** modulus.bit_length() - 1
    while True:
        for word in np.frombuffer(encryptor.update(bytes(1 << 13)), "<u8").tolist():
            if word & mask < modulus:
                yield word & mask


def counts_of(moduli: Sequence[int]) -> list[int]:
    """κ of each prime: the least number with κ·(bits − 1) ≥ 112."""
    return [next(count for count in range(1, 113) if count * (q.bit_length() - 1) >= 112) for q in moduli]


def elements(words: Sequence[int], moduli: Sequence[int], degree: int, keys: Sequence[bytes]) -> list[int]:
    """Σ_B Σ_j α_B·β_j·c_{B,j} of each element, keys in order of prime and element; no pads."""
    polynomials = np.array(words, dtype=object).reshape(-1, len(moduli), degree)
    places = [
        (row, q) for row, (q, count) in enumerate(zip(moduli, counts_of(moduli), strict=True)) for _ in range(count)
    ]
    found = []
    for (row, modulus), key in zip(places, keys, strict=True):
        stream = samples(key, modulus)
        beta = [next(stream) for _ in range(degree)]
        total = 0
        for polynomial in polynomials[:, row].tolist():
            dot = sum(one * other for one, other in zip(beta, polynomial, strict=True))
            total += next(stream) * dot
        found.append(total % modulus)
    return found
