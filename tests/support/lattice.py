"""Params and keys of the libraries that wrap SEAL, and slots for their blocks."""

from __future__ import annotations

import os
from functools import cache

import numpy as np

from secagg.scheme.params import BGVParams, CKKSParams
from secagg.trust.key import ClientKey


def bgv(degree, sizes, plain):
    return BGVParams(
        poly_modulus_degree=degree, coeff_mod_bit_sizes=sizes, plain_modulus_bits=plain, value_bits=8, seeded=False
    )


#: Public-key ciphertexts have room under all but the last.
BGV = {
    "one prime": bgv(2048, (53,), 30),
    "special prime": bgv(4096, (53, 53), 36),
    "plain modulus above every prime": bgv(4096, (36, 36, 34), 54),
    "full": bgv(2048, (53,), 42),
}
CKKS = {
    "clara": CKKSParams(8192, (60, 40, 40), 40),
    "one prime": CKKSParams(2048, (53,), 40),
    "complex": CKKSParams(8192, (60, 40, 40), 40, complex_slots=True),
    "complex, one prime": CKKSParams(2048, (53,), 40, complex_slots=True),
}
ALL = {f"CKKS {name}": params for name, params in CKKS.items()} | {
    f"BGV {name}": params for name, params in BGV.items()
}


@cache
def key_of(backend, params):
    return ClientKey(params, backend.generate(params), os.urandom(32))


def data_primes(params, key):
    return key.server.primes[: len(params.data_bit_sizes)]


def random_slots(params, plain_modulus, seed=0):
    rng = np.random.default_rng(seed)
    if isinstance(params, BGVParams):
        return rng.integers(0, plain_modulus, params.slot_count, dtype=np.uint64)
    real, imaginary = rng.uniform(-1, 1, (2, params.slot_count))
    return real + 1j * imaginary if params.complex_slots else real


def assert_slots(found, expected):
    assert found.dtype == expected.dtype
    if expected.dtype == np.uint64:
        np.testing.assert_array_equal(found, expected)
    else:
        np.testing.assert_allclose(found, expected, atol=1e-6)


def add_words(blocks, params, key):
    """The sum as an aggregator makes it: word by word, modulo the prime of the row."""
    primes = np.array(data_primes(params, key), dtype=object)[None, :, None]
    shape = (2, primes.size, params.poly_modulus_degree)
    total = sum(block.reshape(shape).astype(object) for block in blocks) % primes
    return total.astype(np.uint64).reshape(-1)
