"""CKKS with TenSEAL, encrypting symmetrically in half the time of public-key encryption.

TenSEAL's vectors have real slots and at least two primes; the objects of SEAL that it exposes as ``tenseal.sealapi`` do
without these limits in the same time. They save to and load from paths only, and those lead to memory here.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError, BackendUnavailableError, ConfigError, DecryptionError
from ..scheme.params import CKKSParams, Params
from ..trust.key import ClientKey, KeyMaterial
from . import seal_format
from .base import SHARED_KEY_TRUST
from .lattice import NATIVE_ERRORS, LatticeBackend

_ZSTD = 2
#: A ciphertext is unpacked this far into a buffer, so that its words, from byte 97, are aligned.
_SHIFT = -seal_format.CIPHERTEXT_PREFIX_NBYTES % 8


class TenSEALBackend(LatticeBackend):
    """One SEAL context of TenSEAL, and buffers for one block."""

    id = "tenseal"
    schemes = ("CKKS",)
    trust = SHARED_KEY_TRUST
    module = "tenseal"
    symmetric = True

    def __init__(self, params: Params, key: ClientKey) -> None:
        super().__init__(params, key)
        assert isinstance(params, CKKSParams)
        self.library()
        import tenseal.sealapi as seal
        import zstandard

        material = key.secret_material()
        self._channel = _Channel()
        minor = self._minor = _minor(seal, self._channel)
        self._context = _context(seal, params, [seal.Modulus(prime) for prime in material.primes])
        secret = seal.SecretKey()
        try:
            self._channel.put(seal_format.pack_secret_key(params, material, minor))
            secret.load(self._context, self._channel.path)
            self._encryptor = seal.Encryptor(self._context, secret)
            self._decryptor = seal.Decryptor(self._context, secret)
        except NATIVE_ERRORS as error:
            raise BackendError("TenSEAL refuses the key; was it made under these params?") from error
        finally:
            self._channel.put(b"")
        self._encoder = seal.CKKSEncoder(self._context)
        self._decode = self._encoder.decode_complex if params.complex_slots else self._encoder.decode_double
        self._scale = 2.0**params.scale_bits
        self._plaintext, self._ciphertext = seal.Plaintext(), seal.Ciphertext()

        # A ciphertext is un-zstd into `_payload`, whose words are at `_words`.
        self._prefix = seal_format.pack_ciphertext_prefix(params, material.primes, minor)
        self._expected = self._prefix[seal_format.HEADER_NBYTES :]
        nbytes = seal_format.CIPHERTEXT_PREFIX_NBYTES + 16 * len(self.data_primes) * self.degree
        buffer = np.zeros(_SHIFT + nbytes, dtype=np.uint8)
        self._payload = memoryview(buffer)[_SHIFT:]  # type: ignore[arg-type]  # an ndarray is a buffer
        self._words = buffer[_SHIFT + seal_format.CIPHERTEXT_PREFIX_NBYTES :].view(np.uint64)
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
        assert isinstance(params, CKKSParams)
        cls.library()
        import tenseal.sealapi as seal

        channel = _Channel()
        try:
            moduli = seal.CoeffModulus.Create(params.poly_modulus_degree, list(params.coeff_mod_bit_sizes))
        except NATIVE_ERRORS as error:
            raise ConfigError(f"TenSEAL refuses these params: {error}") from error
        primes = tuple(int(modulus.value()) for modulus in moduli)
        generator = seal.KeyGenerator(_context(seal, params, moduli))
        public = seal.PublicKey()
        generator.create_public_key(public)
        return KeyMaterial(
            primes,
            seal_format.unpack_secret_key(_payload(channel.saved(generator.secret_key())), params, primes),
            seal_format.unpack_public_key(_payload(channel.saved(public)), params, primes),
        )

    def encrypt(self, slots: NDArray[Any]) -> NDArray[np.uint64]:
        """See `LatticeBackend.encrypt`."""
        try:
            self._encoder.encode(slots.tolist(), self._scale, self._plaintext)
            self._encryptor.encrypt_symmetric(self._plaintext, self._ciphertext)
            blob = memoryview(self._channel.saved(self._ciphertext))
            if seal_format.read_header(blob) != (self._minor, _ZSTD):
                raise ValueError("not a zstd-compressed ciphertext")
            with self._decompressor.stream_reader(blob[seal_format.HEADER_NBYTES :]) as reader:
                size = reader.readinto(self._payload)
                if size != len(self._payload) or reader.read(1):
                    raise ValueError(f"a ciphertext of {size} bytes")
        except (*NATIVE_ERRORS, self._zstd_error) as error:
            raise BackendError(f"TenSEAL could not encrypt a block: {error}") from error
        if self._payload[: len(self._expected)] != self._expected:
            raise BackendError("TenSEAL made a ciphertext of another form than expected; is its version supported?")
        return self._words

    def decrypt(self, words: NDArray[np.uint64]) -> NDArray[Any]:
        """See `LatticeBackend.decrypt`."""
        self._channel.put(self._prefix + words.tobytes())
        try:
            self._ciphertext.load(self._context, self._channel.path)
            self._decryptor.decrypt(self._ciphertext, self._plaintext)
            return np.array(self._decode(self._plaintext))
        except NATIVE_ERRORS:
            raise DecryptionError from None


class _Channel:
    """A path for objects that only save to and load from one: into memory where the system has such files.

    A forked process opens its own: through a shared one it could read the ciphertext of the other, and one ciphertext
    whose c1 is replaced under two nonces gives the secret key away.
    """

    def __init__(self) -> None:
        self._open()

    def put(self, blob: bytes) -> None:
        """Make `blob` the content."""
        self._own()
        os.ftruncate(self._handle, len(blob))
        os.pwrite(self._handle, blob, 0)

    def saved(self, native: Any) -> bytes:
        """Return what a native object saves."""
        self._own()
        native.save(self.path)
        return os.pread(self._handle, os.fstat(self._handle).st_size, 0)

    def _own(self) -> None:
        if os.getpid() != self._owner:
            self._open()

    def _open(self) -> None:
        self._owner = os.getpid()
        if hasattr(os, "memfd_create"):
            self._handle = os.memfd_create("secagg")
            self.path = f"/proc/self/fd/{self._handle}"
        else:
            self._handle, self.path = tempfile.mkstemp()  # made with 0o600
            weakref.finalize(self, _unlink, self.path, self._owner)
        weakref.finalize(self, os.close, self._handle)


def _unlink(path: str, owner: int) -> None:
    """Remove a file, unless this process is a fork of the one that owns it."""
    if os.getpid() == owner:
        os.unlink(path)


def _context(seal: Any, params: CKKSParams, moduli: list[Any]) -> Any:
    """Return a context over the given primes, or say what TenSEAL does not accept."""
    try:
        parms = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
        parms.set_poly_modulus_degree(params.poly_modulus_degree)
        parms.set_coeff_modulus(moduli)
        context = seal.SEALContext(parms, True, seal.SEC_LEVEL_TYPE.TC128)
        if not context.parameters_set():
            raise ValueError(context.parameters_error_message())
    except NATIVE_ERRORS as error:
        raise ConfigError(f"TenSEAL refuses these params: {error}") from error
    return context


def _minor(seal: Any, channel: _Channel) -> int:
    """Return the minor version of TenSEAL's SEAL, read from the smallest object that it saves."""
    return seal_format.read_header(channel.saved(seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)))[0]


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
