"""CKKS with TenSEAL, encrypting symmetrically in half the time of public-key encryption."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError, BackendUnavailableError, ConfigError, DecryptionError
from ..key import ClientKey, KeyMaterial
from ..params import CKKSParams, Params
from . import seal_format, tenseal_format
from .base import SHARED_KEY_TRUST
from .lattice import LatticeBackend

_ZSTD = 2
#: A ciphertext is unpacked this far into a buffer, so that its words, from byte 97, are aligned.
_SHIFT = -seal_format.CIPHERTEXT_PREFIX_NBYTES % 8


class TenSEALBackend(LatticeBackend):
    """One TenSEAL context, and buffers for one block."""

    id = "tenseal"
    schemes = ("CKKS",)
    trust = SHARED_KEY_TRUST
    module = "tenseal"
    symmetric = True

    def __init__(self, params: Params, key: ClientKey) -> None:
        super().__init__(params, key)
        params = _check_params(params)
        tenseal = self.library()
        self._native = tenseal._ts_cpp
        material = key.secret_material()
        self._context, self._minor = _context(tenseal, params, material)

        # In: un-zstd into `_payload`, whose words are at `_words`.
        count = 2 * len(self.data_primes) * self.degree
        payload_nbytes = seal_format.CIPHERTEXT_PREFIX_NBYTES + 8 * count
        prefix = seal_format.pack_ciphertext_prefix(params, material.primes, self._minor)
        buffer = np.zeros(_SHIFT + payload_nbytes, dtype=np.uint8)
        self._payload = memoryview(buffer)[_SHIFT:]  # type: ignore[arg-type]  # an ndarray is a buffer
        self._expected = prefix[seal_format.HEADER_NBYTES :]
        self._words = buffer[_SHIFT + seal_format.CIPHERTEXT_PREFIX_NBYTES :].view(np.uint64)

        # Out: a whole CKKSVector around the words, uncompressed.
        scale = 2.0**params.scale_bits
        start = tenseal_format.pack_vector_prefix(params.slot_count, len(prefix) + 8 * count) + prefix
        self._vector = bytearray(start + bytes(8 * count) + tenseal_format.pack_vector_suffix(scale))
        self._vector_words = np.frombuffer(self._vector, np.uint8, count=8 * count, offset=len(start))

        import zstandard

        self._decompressor = zstandard.ZstdDecompressor()
        self._zstd_error = zstandard.ZstdError

    @classmethod
    def library(cls) -> Any:
        """See `Backend.library`; without zstandard, which TenSEAL's ciphertexts need, it is not available either."""
        try:
            import zstandard  # noqa: F401
        except ImportError as error:
            raise BackendUnavailableError(
                f"backend {cls.id!r} needs the library zstandard: pip install 'secagg[{cls.id}]' ({error})"
            ) from error
        return super().library()

    @classmethod
    def generate(cls, params: Params) -> KeyMaterial:
        """Generate a key with SEAL's KeyGenerator; no Galois or relinearisation keys are made."""
        cls.check_scheme(params)
        params = _check_params(params)
        cls.library()
        import tenseal.sealapi as seal

        try:
            parms = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
            parms.set_poly_modulus_degree(params.poly_modulus_degree)
            moduli = seal.CoeffModulus.Create(params.poly_modulus_degree, list(params.coeff_mod_bit_sizes))
            parms.set_coeff_modulus(moduli)
            generator = seal.KeyGenerator(seal.SEALContext(parms, True, seal.SEC_LEVEL_TYPE.TC128))
            public = seal.PublicKey()
            generator.create_public_key(public)
            secret_blob, public_blob = _saved(generator.secret_key()), _saved(public)
        except (ValueError, RuntimeError, TypeError) as error:
            raise ConfigError(f"TenSEAL refuses these params: {error}") from error
        primes = tuple(int(modulus.value()) for modulus in moduli)
        return KeyMaterial(
            primes,
            seal_format.unpack_secret_key(_payload(secret_blob), params, primes),
            seal_format.unpack_public_key(_payload(public_blob), params, primes),
        )

    def encrypt(self, slots: NDArray[np.float64]) -> NDArray[np.uint64]:
        """See `LatticeBackend.encrypt`."""
        try:
            blob = self._native.CKKSVector(self._context, slots.tolist()).serialize()
            ciphertext = tenseal_format.vector_ciphertext(blob)
            if seal_format.read_header(ciphertext) != (self._minor, _ZSTD):
                raise ValueError("not a zstd-compressed ciphertext")
            with self._decompressor.stream_reader(ciphertext[seal_format.HEADER_NBYTES :]) as reader:
                size = reader.readinto(self._payload)
                if size != len(self._payload) or reader.read(1):
                    raise ValueError(f"a ciphertext of {size} bytes")
        except (ValueError, RuntimeError, TypeError, self._zstd_error) as error:
            raise BackendError(f"TenSEAL could not encrypt a block: {error}") from error
        if self._payload[: len(self._expected)] != self._expected:
            raise BackendError("TenSEAL made a ciphertext of another form than expected; is its version supported?")
        return self._words

    def decrypt(self, words: NDArray[np.uint64]) -> NDArray[np.float64]:
        """See `LatticeBackend.decrypt`."""
        self._vector_words[:] = words.view(np.uint8)
        try:
            values = self._native.CKKSVector(self._context, bytes(self._vector)).decrypt()
        except (ValueError, RuntimeError, TypeError):
            raise DecryptionError from None
        return np.array(values, dtype=np.float64)


def _check_params(params: Params) -> CKKSParams:
    assert isinstance(params, CKKSParams)
    if params.complex_slots:
        raise ConfigError("TenSEAL fills real slots only: set complex_slots: false for all sites, or lib: seal")
    if not params.has_special_prime:
        raise ConfigError(
            f"TenSEAL needs at least two primes, coeff_mod_bit_sizes is {list(params.coeff_mod_bit_sizes)}: "
            "add a special prime at the end, or use another backend"
        )
    return params


def _context(tenseal: Any, params: CKKSParams, material: KeyMaterial) -> tuple[Any, int]:
    """Return TenSEAL's native context with the secret key, and the minor version of its SEAL."""
    minor = _minor()
    try:
        parms = seal_format.pack_parms(params, material.primes, minor)
        secret = seal_format.pack_secret_key(params, material, minor)
        blob = tenseal_format.pack_context(parms, secret, 2.0**params.scale_bits)
        return tenseal._ts_cpp.TenSEALContext.deserialize(blob, 1), minor
    except (ValueError, RuntimeError, TypeError) as error:
        raise BackendError("TenSEAL refuses the key; was it made under these params?") from error


def _minor() -> int:
    """Return the minor version of TenSEAL's SEAL, read from the smallest object that it saves."""
    import tenseal.sealapi as seal

    return seal_format.read_header(_saved(seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)))[0]


def _saved(native: Any) -> bytes:
    """Return what a native object saves. TenSEAL saves to paths only; secrets go to memory where the system has it."""
    if hasattr(os, "memfd_create"):
        handle = os.memfd_create("secagg")
        try:
            native.save(f"/proc/self/fd/{handle}")
            return os.pread(handle, os.fstat(handle).st_size, 0)
        finally:
            os.close(handle)
    with tempfile.NamedTemporaryFile() as file:  # made with 0o600
        native.save(file.name)
        return file.read()


def _payload(blob: bytes) -> bytes:
    import zstandard

    _, compression = seal_format.read_header(blob)
    body = blob[seal_format.HEADER_NBYTES :]
    if compression == 0:
        return body
    if compression != _ZSTD:
        raise BackendError(f"TenSEAL saved a key with compression {compression}; is its version supported?")
    try:
        return zstandard.ZstdDecompressor().decompressobj().decompress(body)
    except zstandard.ZstdError as error:
        raise BackendError(f"TenSEAL saved a key that cannot be decompressed: {error}") from error
