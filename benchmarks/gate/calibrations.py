"""What any machine does, to hold a time against: a memcpy, a keystream, a library by itself.

Nothing of secagg is in it, and its parameters never change: so a quotient means the same on any machine, in any year.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Calibration(NamedTuple):
    """`kind` of `calibration`, and of how much: bytes for a memcpy or a keystream, blocks for a library."""

    kind: str
    amount: int


def calibration(kind: str, amount: int) -> Callable[[], object]:
    """Return what is to be timed."""
    return {
        "memcpy": _memcpy,
        "aes": _aes,
        "ckks encrypt": _ckks_encrypt,
        "ckks decrypt": _ckks_decrypt,
        "bgv encrypt": _bgv_encrypt,
        "bgv decrypt": _bgv_decrypt,
    }[kind](amount)


def _memcpy(nbytes: int) -> Callable[[], object]:
    source, target = np.ones(nbytes, np.uint8), np.zeros(nbytes, np.uint8)
    return lambda: ctypes.memmove(target.ctypes.data, source.ctypes.data, nbytes)


def _aes(nbytes: int) -> Callable[[], object]:
    """AES-256-CTR, a piece that stays in the caches at a time."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    stream = Cipher(algorithms.AES256(bytes(32)), modes.CTR(bytes(16))).encryptor()
    zeros, out = bytes(1 << 18), bytearray(1 << 18)
    whole, rest = divmod(nbytes, len(zeros))

    def run() -> None:
        for _ in range(whole):
            stream.update_into(zeros, out)
        stream.update_into(zeros[:rest], out)

    return run


def _tenseal(blocks: int) -> tuple[Any, Any, np.ndarray]:
    import tenseal

    context = tenseal.context(
        tenseal.SCHEME_TYPE.CKKS,
        8192,
        coeff_mod_bit_sizes=[60, 40, 40],
        encryption_type=tenseal.ENCRYPTION_TYPE.SYMMETRIC,
    )
    context.global_scale = 2.0**40
    return tenseal, context, np.random.default_rng(0).normal(0, 0.05, 4096 * blocks)


def _ckks_encrypt(blocks: int) -> Callable[[], object]:
    """TenSEAL with Clara's params, blocks that are full."""
    tenseal, context, values = _tenseal(blocks)
    return lambda: tenseal.ckks_vector(context, values).serialize()


def _ckks_decrypt(blocks: int) -> Callable[[], object]:
    tenseal, context, values = _tenseal(blocks)
    blob = tenseal.ckks_vector(context, values).serialize()
    return lambda: tenseal.ckks_vector_from(context, blob).decrypt()


def _seal() -> tuple[Any, Any, Any, Any]:
    """seal-python with one prime of 59 bits, as plans for 16 bits have it."""
    import seal

    parms = seal.EncryptionParameters(seal.scheme_type.bgv)
    parms.set_poly_modulus_degree(4096)
    parms.set_coeff_modulus(seal.CoeffModulus.Create(4096, [59]))
    parms.set_plain_modulus(seal.PlainModulus.Batching(4096, 52))
    context = seal.SEALContext(parms)
    secret = seal.KeyGenerator(context).secret_key()
    return seal, context, secret, seal.BatchEncoder(context).encode(np.arange(4096, dtype=np.uint64))


def _bgv_encrypt(blocks: int) -> Callable[[], object]:
    seal, context, secret, plain = _seal()
    encryptor = seal.Encryptor(context, secret)

    def run() -> None:
        for _ in range(blocks):
            encryptor.encrypt_symmetric(plain).to_string()

    return run


def _bgv_decrypt(blocks: int) -> Callable[[], object]:
    seal, context, secret, plain = _seal()
    decryptor, cipher, out = seal.Decryptor(context, secret), seal.Ciphertext(), seal.Plaintext()
    blob = seal.Encryptor(context, secret).encrypt_symmetric(plain).to_string()

    def run() -> None:
        for _ in range(blocks):
            cipher.load_bytes(context, blob)
            decryptor.decrypt(cipher, out)

    return run
