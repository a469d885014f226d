"""The expansion of a nonce once more, from docs/wire-format.md, in Python's integers."""

from __future__ import annotations

import math

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes


def expansion(nonce, primes, degree, block):
    """The polynomial c1 of a block, a row of words a prime."""
    spare = []
    for prime in primes:
        rejected = math.ceil(2 * degree * ((1 << prime.bit_length()) - prime) / prime)
        spare.append(math.ceil((rejected + 64) / 8) * 8)
    sizes = [8 * (degree + extra) for extra in spare]
    encryptor = Cipher(algorithms.AES256(nonce), modes.CTR(bytes(16))).encryptor()
    stream = encryptor.update(bytes((block + 1) * sum(sizes)))[block * sum(sizes) :]
    rows = []
    for prime, size in zip(primes, sizes, strict=True):
        region, stream = np.frombuffer(stream[:size], "<u8"), stream[size:]
        candidates = [word % (1 << prime.bit_length()) for word in region.tolist()]
        rows.append([word for word in candidates if word < prime][:degree])
    return np.array(rows, dtype=np.uint64)
