"""CKKS with Pyfhel, which encrypts under the public key only: twice the time of symmetric encryption, the same size."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError, ConfigError, DecryptionError
from ..key import ClientKey, KeyMaterial
from ..params import Params
from . import seal_format
from .base import SHARED_KEY_TRUST, Backend

_NATIVE_ERRORS = (ValueError, RuntimeError, TypeError, OverflowError)


class PyfhelBackend(Backend):
    """One Pyfhel context, and buffers for one block."""

    id = "pyfhel"
    schemes = ("CKKS",)
    trust = SHARED_KEY_TRUST
    module = "Pyfhel"

    def __init__(self, params: Params, key: ClientKey) -> None:
        self.check_scheme(params)
        library = self.library()
        material = key.secret_material()
        self._ciphertext = library.PyCtxt
        self._native = _context(library, params, material.primes)
        minor = self._minor(params)
        try:
            self._native.from_bytes_secret_key(seal_format.pack_secret_key(params, material, minor))
            self._native.from_bytes_public_key(seal_format.pack_public_key(params, material, minor))
        except _NATIVE_ERRORS as error:
            raise BackendError("Pyfhel refuses the key; was it made under these params?") from error
        self._prefix = seal_format.pack_ciphertext_prefix(params, material.primes, minor)
        data = seal_format.data_primes(params, material.primes)
        self._words = np.empty(2 * len(data) * params.poly_modulus_degree, dtype=np.uint64)

    @classmethod
    def generate(cls, params: Params) -> KeyMaterial:
        """Generate a key with SEAL's KeyGenerator; no Galois or relinearisation keys are made."""
        cls.check_scheme(params)
        native = _context(cls.library(), params)
        native.keyGen()
        primes = tuple(int(prime) for prime in native.qi)
        secret, public = native.to_bytes_secret_key("none"), native.to_bytes_public_key("none")
        return KeyMaterial(
            primes,
            seal_format.unpack_secret_key(secret[seal_format.HEADER_NBYTES :], params, primes),
            seal_format.unpack_public_key(public[seal_format.HEADER_NBYTES :], params, primes),
        )

    def encrypt(self, slots: NDArray[np.float64]) -> NDArray[np.uint64]:
        """See `Backend.encrypt`."""
        try:
            blob = self._native.encryptFrac(slots).to_bytes("none")
        except _NATIVE_ERRORS as error:
            raise BackendError(f"Pyfhel could not encrypt a block: {error}") from error
        if len(blob) != len(self._prefix) + self._words.nbytes or not blob.startswith(self._prefix):
            raise BackendError("Pyfhel made a ciphertext of another form than expected; is its version supported?")
        self._words.view(np.uint8)[:] = np.frombuffer(blob, np.uint8, offset=len(self._prefix))
        return self._words

    def decrypt(self, words: NDArray[np.uint64]) -> NDArray[np.float64]:
        """See `Backend.decrypt`."""
        blob = self._prefix + words.tobytes()
        try:
            values = self._native.decryptFrac(self._ciphertext(pyfhel=self._native, bytestring=blob, scheme="ckks"))
        except _NATIVE_ERRORS:
            raise DecryptionError from None
        return np.asarray(values, dtype=np.float64)

    def _minor(self, params: Params) -> int:
        """Return the minor version of Pyfhel's SEAL, read from a plaintext that it saves."""
        plaintext = self._native.encodeFrac(np.zeros(params.slot_count))
        return seal_format.read_header(plaintext.to_bytes("none"))[0]


def _context(library: Any, params: Params, primes: tuple[int, ...] = ()) -> Any:
    """Return a Pyfhel object without keys, over the given primes, or over primes that SEAL chooses."""
    native = library.Pyfhel()
    chain = {"qi": list(primes)} if primes else {"qi_sizes": list(params.coeff_mod_bit_sizes)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that primes do not suit rescaling, which sums do not need
            verdict = native.contextGen("CKKS", n=params.poly_modulus_degree, scale=2.0**params.scale_bits, **chain)
    except _NATIVE_ERRORS as error:
        raise ConfigError(f"Pyfhel refuses these params: {error}") from error
    sizes = [int(prime).bit_length() for prime in native.qi]
    if not verdict.startswith("success") or sizes != list(params.coeff_mod_bit_sizes):
        raise ConfigError(f"Pyfhel refuses these params: {verdict}, primes of {sizes} bits")
    return native
