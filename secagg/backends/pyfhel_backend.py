"""CKKS and BGV with Pyfhel, which encrypts under the public key only: twice the time of symmetric encryption."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError, ConfigError, DecryptionError
from ..scheme.params import BGVParams, CKKSParams, LatticeParams, Params
from ..trust.key import ClientKey, KeyMaterial
from . import seal_format
from .base import SHARED_KEY_TRUST
from .lattice import NATIVE_ERRORS, LatticeBackend


class PyfhelBackend(LatticeBackend):
    """One Pyfhel context, and buffers for one block."""

    id = "pyfhel"
    schemes = ("CKKS", "BGV")
    trust = SHARED_KEY_TRUST
    module = "Pyfhel"
    symmetric = False

    def __init__(self, params: Params, key: ClientKey) -> None:
        super().__init__(params, key)
        assert isinstance(params, LatticeParams)
        library = self.library()
        material = key.secret_material()
        self._plain_modulus = material.plain_modulus
        self._ciphertext, self._scheme = library.PyCtxt, params.scheme.lower()
        self._native = _context(library, params, material)
        minor = self._minor()
        try:
            self._native.from_bytes_secret_key(seal_format.pack_secret_key(params, material, minor))
            self._native.from_bytes_public_key(seal_format.pack_public_key(params, material, minor))
        except NATIVE_ERRORS as error:
            raise BackendError("Pyfhel refuses the key; was it made under these params?") from error
        self._prefix = seal_format.pack_ciphertext_prefix(params, material.primes, minor, material.plain_modulus)
        self._words = np.empty(2 * len(self.data_primes) * self.degree, dtype=np.uint64)

    @classmethod
    def generate(cls, params: Params) -> KeyMaterial:
        """Generate a key with SEAL's KeyGenerator; no Galois or relinearisation keys are made."""
        cls.check_scheme(params)
        assert isinstance(params, LatticeParams)
        native = _context(cls.library(), params)
        native.keyGen()
        primes, plain = _moduli(native, params)
        secret, public = native.to_bytes_secret_key("none"), native.to_bytes_public_key("none")
        return seal_format.unpack_key(secret, public, params, primes, plain)

    def encrypt(self, slots: NDArray[Any]) -> NDArray[np.uint64]:
        """See `LatticeBackend.encrypt`."""
        try:
            blob = self._encrypt(slots).to_bytes("none")
        except NATIVE_ERRORS as error:
            raise BackendError(f"Pyfhel could not encrypt a block: {error}") from error
        if not seal_format.unpack_ciphertext(blob, self._prefix, self._words):
            raise BackendError("Pyfhel made a ciphertext of another form than expected; is its version supported?")
        return self._words

    def decrypt(self, words: NDArray[np.uint64]) -> NDArray[Any]:
        """See `LatticeBackend.decrypt`."""
        blob = self._prefix + words.tobytes()
        try:
            return self._decrypt(self._ciphertext(pyfhel=self._native, bytestring=blob, scheme=self._scheme))
        except NATIVE_ERRORS:
            raise DecryptionError from None

    def _encrypt(self, slots: NDArray[Any]) -> Any:
        if not isinstance(self._params, CKKSParams):
            return self._native.encryptBGV(_centre(slots, self._plain_modulus))
        return self._native.encryptComplex(slots) if self._params.complex_slots else self._native.encryptFrac(slots)

    def _decrypt(self, ciphertext: Any) -> NDArray[Any]:
        if not isinstance(self._params, CKKSParams):
            return _lift(np.asarray(self._native.decryptBGV(ciphertext), dtype=np.int64), self._plain_modulus)
        if self._params.complex_slots:
            return np.asarray(self._native.decryptComplex(ciphertext), dtype=np.complex128)
        return np.asarray(self._native.decryptFrac(ciphertext), dtype=np.float64)

    def _minor(self) -> int:
        """Return the minor version of Pyfhel's SEAL, read from a plaintext that it saves."""
        if isinstance(self._params, CKKSParams):
            plaintext = self._native.encodeFrac(np.zeros(self._params.slot_count))
        else:
            plaintext = self._native.encodeBGV(np.zeros(self._params.slot_count, dtype=np.int64))
        return seal_format.read_header(plaintext.to_bytes("none"))[0]


def _centre(slots: NDArray[np.uint64], plain_modulus: int) -> NDArray[np.int64]:
    """Return slots below t as Pyfhel takes them: from −t/2 to t/2; of anything else it silently makes zeros."""
    if slots.size and int(slots.max()) >= plain_modulus:
        raise ValueError("a slot is not below the plain modulus")
    upper = slots > np.uint64(plain_modulus // 2)
    centred: NDArray[np.uint64] = slots - upper * np.uint64(plain_modulus)  # wraps around to two's complement
    return centred.view(np.int64)


def _lift(slots: NDArray[np.int64], plain_modulus: int) -> NDArray[np.uint64]:
    """Return slots from −t/2 to t/2 as numbers below t; the inverse of `_centre`."""
    lifted: NDArray[np.int64] = slots + (slots < 0) * np.int64(plain_modulus)
    return lifted.view(np.uint64)


def _context(library: Any, params: LatticeParams, material: KeyMaterial | None = None) -> Any:
    """Return a Pyfhel object without keys, over the moduli of a key, or over moduli that SEAL chooses."""
    native = library.Pyfhel()
    if material is None:
        options: dict[str, Any] = {"qi_sizes": list(params.coeff_mod_bit_sizes)}
    else:
        options = {"qi": list(material.primes)}
    if isinstance(params, CKKSParams):
        options["scale"] = 2.0**params.scale_bits
    elif isinstance(params, BGVParams):
        # With a level of security Pyfhel discards the primes that it is given; `LatticeParams` sees to security.
        options["sec"] = 0
        options |= {"t_bits": params.plain_modulus_bits} if material is None else {"t": material.plain_modulus}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that primes do not suit rescaling, which sums do not need
            verdict = native.contextGen(params.scheme, n=params.poly_modulus_degree, **options)
        if not verdict.startswith("success"):
            raise ValueError(verdict)
        moduli = _moduli(native, params)
    except NATIVE_ERRORS as error:
        raise ConfigError(f"Pyfhel refuses these params: {error}") from error
    seal_format.check_moduli(params, *moduli)
    if material is not None and moduli != (material.primes, material.plain_modulus):
        raise ConfigError(f"Pyfhel uses the moduli {moduli} instead of those of the key")
    return native


def _moduli(native: Any, params: LatticeParams) -> tuple[tuple[int, ...], int]:
    """Return the primes that Pyfhel uses, and its plain modulus or 0."""
    plain = 0 if isinstance(params, CKKSParams) else int(native.get_plain_modulus())
    return tuple(int(prime) for prime in native.qi), plain
