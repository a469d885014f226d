"""CKKS and BGV with seal-python, encrypting symmetrically: NumPy arrays and bytes in and out, nothing in files."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError, ConfigError, DecryptionError
from ..scheme.params import BGVParams, CKKSParams, LatticeParams, Params
from ..trust.key import ClientKey, KeyMaterial
from . import seal_format
from .base import SHARED_KEY_TRUST
from .lattice import NATIVE_ERRORS, LatticeBackend


class SEALBackend(LatticeBackend):
    """One SEAL context, and buffers for one block."""

    id = "seal"
    schemes = ("CKKS", "BGV")
    trust = SHARED_KEY_TRUST
    module = "seal"
    symmetric = True

    def __init__(self, params: Params, key: ClientKey) -> None:
        super().__init__(params, key)
        assert isinstance(params, LatticeParams)
        seal = self.library()
        material = key.secret_material()
        minor = _minor(seal)
        self._context = _context(seal, params, material.primes, material.plain_modulus)
        try:
            secret = self._context.from_secret_str(seal_format.pack_secret_key(params, material, minor))
            self._encryptor = seal.Encryptor(self._context, secret)
            self._decryptor = seal.Decryptor(self._context, secret)
        except NATIVE_ERRORS as error:
            raise BackendError("SEAL refuses the key; was it made under these params?") from error
        self._encode, self._decode = _codec(seal, self._context, params)
        self._ciphertext, self._plaintext = seal.Ciphertext(), seal.Plaintext()
        self._prefix = seal_format.pack_ciphertext_prefix(params, material.primes, minor, material.plain_modulus)
        self._words = np.empty(2 * len(self.data_primes) * self.degree, dtype=np.uint64)

    @classmethod
    def generate(cls, params: Params) -> KeyMaterial:
        """Generate a key with SEAL's KeyGenerator; no Galois or relinearisation keys are made."""
        cls.check_scheme(params)
        assert isinstance(params, LatticeParams)
        seal, degree = cls.library(), params.poly_modulus_degree
        try:
            moduli = seal.CoeffModulus.Create(degree, list(params.coeff_mod_bit_sizes))
            primes = tuple(int(modulus.value()) for modulus in moduli)
            plain = 0
            if isinstance(params, BGVParams):
                plain = int(seal.PlainModulus.Batching(degree, params.plain_modulus_bits).value())
        except NATIVE_ERRORS as error:
            raise ConfigError(f"SEAL refuses these params: {error}") from error
        generator = seal.KeyGenerator(_context(seal, params, primes, plain))
        secret, public = generator.secret_key().to_string(), generator.create_public_key().to_string()
        return seal_format.unpack_key(secret, public, params, primes, plain)

    def encrypt(self, slots: NDArray[Any]) -> NDArray[np.uint64]:
        """See `LatticeBackend.encrypt`."""
        try:
            blob = self._encryptor.encrypt_symmetric(self._encode(slots)).to_string()
        except NATIVE_ERRORS as error:
            raise BackendError(f"SEAL could not encrypt a block: {error}") from error
        if not seal_format.unpack_ciphertext(blob, self._prefix, self._words):
            raise BackendError("SEAL made a ciphertext of another form than expected; is its version supported?")
        return self._words

    def decrypt(self, words: NDArray[np.uint64]) -> NDArray[Any]:
        """See `LatticeBackend.decrypt`."""
        try:
            self._ciphertext.load_bytes(self._context, self._prefix + words.tobytes())
            self._decryptor.decrypt(self._ciphertext, self._plaintext)
            slots: NDArray[Any] = self._decode(self._plaintext)
        except NATIVE_ERRORS:
            raise DecryptionError from None
        return slots


def _codec(seal: Any, context: Any, params: LatticeParams) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return what makes a plaintext of slots, and slots of a plaintext."""
    if not isinstance(params, CKKSParams):
        batch = seal.BatchEncoder(context)
        return batch.encode, batch.decode_uint64
    encoder, scale = seal.CKKSEncoder(context), 2.0**params.scale_bits
    if params.complex_slots:
        return partial(encoder.encode_complex, scale=scale), encoder.decode_complex
    return partial(encoder.encode, scale=scale), encoder.decode


def _context(seal: Any, params: LatticeParams, primes: tuple[int, ...], plain_modulus: int) -> Any:
    """Return a SEAL context over the given moduli, or say what SEAL does not accept."""
    seal_format.check_moduli(params, primes, plain_modulus)
    try:
        parms = seal.EncryptionParameters(seal.scheme_type.ckks if params.scheme == "CKKS" else seal.scheme_type.bgv)
        parms.set_poly_modulus_degree(params.poly_modulus_degree)
        parms.set_coeff_modulus([seal.Modulus(prime) for prime in primes])
        if plain_modulus:
            parms.set_plain_modulus(seal.Modulus(plain_modulus))
        context = seal.SEALContext(parms)
        if not context.parameters_set():
            raise ValueError(context.parameter_error_message())
    except NATIVE_ERRORS as error:
        raise ConfigError(f"SEAL refuses these params: {error}") from error
    return context


def _minor(seal: Any) -> int:
    """Return the minor version of this SEAL, read from the smallest object that it saves."""
    return seal_format.read_header(seal.EncryptionParameters(seal.scheme_type.ckks).to_bytes())[0]
