"""SEAL's binary envelopes around words: keys, parameters and ciphertexts of CKKS.

An object is an outer header of 16 bytes, ``u16 0xA15E | u8 16 | u8 major | u8 minor | u8 compression | u16 0 | u64
total size``, and a payload, all little-endian; words inside have a nested header and a count. Libraries with another
minor version of SEAL refuse each other's objects, so objects are always rebuilt here under the reader's version
(format: Microsoft SEAL 4, native/src/seal/{serialization,ciphertext,plaintext,dynarray,modulus}.h).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import FormatError
from ..key import KeyMaterial
from ..params import Params

SEAL_MAJOR = 4
HEADER_NBYTES = 16

_HEADER = struct.Struct("<HBBBBHQ")
_MAGIC = 0xA15E
_CKKS = 2
_PLAINTEXT = struct.Struct("<32sQd")  # parms_id, coefficients, scale
_CIPHERTEXT = struct.Struct("<32sBQQQdQ")  # parms_id, is_ntt, polynomials, N, primes, scale, correction factor
_COUNT = struct.Struct("<Q")
#: Bytes before the words in the payload of a ciphertext: 97.
CIPHERTEXT_PREFIX_NBYTES = _CIPHERTEXT.size + HEADER_NBYTES + _COUNT.size
_SECRET_PREFIX_NBYTES = _PLAINTEXT.size + HEADER_NBYTES + _COUNT.size


def parms_id(degree: int, primes: Sequence[int]) -> bytes:
    """Return SEAL's hash of CKKS parameters: BLAKE2b-256 of scheme, N, primes and the plain modulus 0."""
    words = (_CKKS, degree, *primes, 0)
    return hashlib.blake2b(struct.pack(f"<{len(words)}Q", *words), digest_size=32).digest()


def data_primes(params: Params, primes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the primes that ciphertexts carry."""
    return primes[: len(params.data_bit_sizes)]


def pack_parms(params: Params, primes: tuple[int, ...], minor: int) -> bytes:
    """Return EncryptionParameters as SEAL saves them."""
    moduli = b"".join(_object(_COUNT.pack(value), minor) for value in (*primes, 0))
    return _object(struct.pack("<BQQ", _CKKS, params.poly_modulus_degree, len(primes)) + moduli, minor)


def pack_secret_key(params: Params, material: KeyMaterial, minor: int) -> bytes:
    """Return a SecretKey as SEAL saves it."""
    head = _PLAINTEXT.pack(parms_id(params.poly_modulus_degree, material.primes), material.secret.size, 1.0)
    return _object(head + _words(material.secret, minor), minor)


def pack_public_key(params: Params, material: KeyMaterial, minor: int) -> bytes:
    """Return a PublicKey as SEAL saves it."""
    head = _ciphertext_head(params.poly_modulus_degree, material.primes, 1.0)
    return _object(head + _words(material.public, minor), minor)


def pack_ciphertext_prefix(params: Params, primes: tuple[int, ...], minor: int) -> bytes:
    """Return all that stands before the words of a two-polynomial ciphertext; 113 bytes."""
    data = data_primes(params, primes)
    head = _ciphertext_head(params.poly_modulus_degree, data, 2.0**params.scale_bits)
    count = 2 * len(data) * params.poly_modulus_degree
    nested = _HEADER.pack(_MAGIC, HEADER_NBYTES, SEAL_MAJOR, minor, 0, 0, HEADER_NBYTES + _COUNT.size + 8 * count)
    size = HEADER_NBYTES + len(head) + len(nested) + _COUNT.size + 8 * count
    return _HEADER.pack(_MAGIC, HEADER_NBYTES, SEAL_MAJOR, minor, 0, 0, size) + head + nested + _COUNT.pack(count)


def read_header(blob: bytes | memoryview) -> tuple[int, int]:
    """Return minor version and compression (0 none, 1 zlib, 2 zstd) of a SEAL object.

    Raises
    ------
    FormatError
        If the outer header is not that of a SEAL 4 object of this length.
    """
    if len(blob) < HEADER_NBYTES:
        raise FormatError("not a SEAL object: too short")
    magic, size, major, minor, compression, _, total = _HEADER.unpack(blob[:HEADER_NBYTES])
    if (magic, size, major, total) != (_MAGIC, HEADER_NBYTES, SEAL_MAJOR, len(blob)):
        raise FormatError("not an object of SEAL 4")
    return minor, compression


def unpack_secret_key(payload: bytes, params: Params, primes: tuple[int, ...]) -> NDArray[np.uint64]:
    """Return the words of a secret key's payload, shape (primes, N)."""
    rows, degree = len(primes), params.poly_modulus_degree
    expected = _PLAINTEXT.pack(parms_id(degree, primes), rows * degree, 1.0)
    return _unpack(payload, expected, _SECRET_PREFIX_NBYTES, rows * degree).reshape(rows, degree)


def unpack_public_key(payload: bytes, params: Params, primes: tuple[int, ...]) -> NDArray[np.uint64]:
    """Return the words of a public key's payload, shape (2, primes, N)."""
    rows, degree = len(primes), params.poly_modulus_degree
    expected = _ciphertext_head(degree, primes, 1.0)
    return _unpack(payload, expected, CIPHERTEXT_PREFIX_NBYTES, 2 * rows * degree).reshape(2, rows, degree)


def _unpack(payload: bytes, head: bytes, prefix: int, count: int) -> NDArray[np.uint64]:
    if len(payload) != prefix + 8 * count or payload[: len(head)] != head:
        raise FormatError("the SEAL object is of other parameters or of another kind")
    return np.frombuffer(payload, dtype="<u8", offset=prefix).astype(np.uint64)


def _ciphertext_head(degree: int, primes: Sequence[int], scale: float) -> bytes:
    return _CIPHERTEXT.pack(parms_id(degree, primes), 1, 2, degree, len(primes), scale, 1)


def _words(words: NDArray[np.uint64], minor: int) -> bytes:
    return _object(_COUNT.pack(words.size) + np.ascontiguousarray(words, dtype="<u8").tobytes(), minor)


def _object(payload: bytes, minor: int) -> bytes:
    header = _HEADER.pack(_MAGIC, HEADER_NBYTES, SEAL_MAJOR, minor, 0, 0, HEADER_NBYTES + len(payload))
    return header + payload
