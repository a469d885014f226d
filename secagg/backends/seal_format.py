"""SEAL's binary envelopes around words: keys, parameters and ciphertexts of CKKS and BGV.

An object is an outer header of 16 bytes, ``u16 0xA15E | u8 16 | u8 major | u8 minor | u8 compression | u16 0 | u64
total size``, and a payload, all little-endian; words inside have a nested header and a count. Libraries with another
minor version of SEAL refuse each other's objects, so objects are always rebuilt here under the reader's version
(format: Microsoft SEAL 4, native/src/seal/{serialization,ciphertext,plaintext,dynarray,modulus}.h).

The schemes differ in their number, in the scale, which is 1 outside CKKS, and in the plain modulus, which is 0 in CKKS.
Their ciphertexts are in number-theoretic-transform form, and those of BGV have correction factor 1 until they are
multiplied or switched to fewer primes, which sums are not.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, FormatError
from ..scheme.params import BGVParams, CKKSParams, LatticeParams
from ..trust.key import KeyMaterial

SEAL_MAJOR = 4
HEADER_NBYTES = 16

_HEADER = struct.Struct("<HBBBBHQ")
_MAGIC = 0xA15E
_SCHEMES = {"CKKS": 2, "BGV": 3}
_PLAINTEXT = struct.Struct("<32sQd")  # parms_id, coefficients, scale
_CIPHERTEXT = struct.Struct("<32sBQQQdQ")  # parms_id, is_ntt, polynomials, N, primes, scale, correction factor
_COUNT = struct.Struct("<Q")
#: Bytes before the words in the payload of a ciphertext: 97.
CIPHERTEXT_PREFIX_NBYTES = _CIPHERTEXT.size + HEADER_NBYTES + _COUNT.size
_SECRET_PREFIX_NBYTES = _PLAINTEXT.size + HEADER_NBYTES + _COUNT.size


def parms_id(params: LatticeParams, primes: Sequence[int], plain_modulus: int = 0) -> bytes:
    """Return SEAL's hash of encryption parameters: BLAKE2b-256 of scheme, N, primes and plain modulus."""
    words = (_SCHEMES[params.scheme], params.poly_modulus_degree, *primes, plain_modulus)
    return hashlib.blake2b(struct.pack(f"<{len(words)}Q", *words), digest_size=32).digest()


def check_moduli(params: LatticeParams, primes: tuple[int, ...], plain_modulus: int = 0) -> None:
    """Check that a library works with the moduli that the params ask for.

    Parameters
    ----------
    params : LatticeParams
        Scheme parameters.
    primes : tuple of int
        The whole chain that the library uses.
    plain_modulus : int
        The plain modulus that it uses; 0 in CKKS.

    Raises
    ------
    ConfigError
        If they have other bit sizes, or ciphertexts would carry another number of primes than the params say.
    """
    sizes = [prime.bit_length() for prime in primes]
    if sizes != list(params.coeff_mod_bit_sizes):
        raise ConfigError(f"primes of {list(params.coeff_mod_bit_sizes)} bits are asked for; the library uses {sizes}")
    if not isinstance(params, BGVParams):
        return
    if plain_modulus.bit_length() != params.plain_modulus_bits:
        raise ConfigError(
            f"a plain modulus of {params.plain_modulus_bits} bits is asked for; the library uses {plain_modulus}"
        )
    # SEAL sets the last prime aside only if the plain modulus is below the product of the others.
    aside = len(primes) > 1 and plain_modulus < math.prod(primes[:-1])
    if len(params.data_bit_sizes) != len(primes) - aside:
        raise ConfigError(
            f"under the plain modulus {plain_modulus}, ciphertexts carry {len(primes) - aside} of the primes of "
            f"{sizes} bits, not {len(params.data_bit_sizes)}: lower plain_modulus_bits, or add a special prime"
        )


def pack_secret_key(params: LatticeParams, material: KeyMaterial, minor: int) -> bytes:
    """Return a SecretKey as SEAL saves it."""
    head = _secret_head(params, material.primes, material.plain_modulus)
    return _object(head + _words(material.secret, minor), minor)


def pack_public_key(params: LatticeParams, material: KeyMaterial, minor: int) -> bytes:
    """Return a PublicKey as SEAL saves it."""
    head = _ciphertext_head(params, material.primes, material.plain_modulus, 1.0)
    return _object(head + _words(material.public, minor), minor)


def pack_ciphertext_prefix(params: LatticeParams, primes: tuple[int, ...], minor: int, plain_modulus: int = 0) -> bytes:
    """Return all that stands before the words of a two-polynomial ciphertext; 113 bytes."""
    data = params.data_primes(primes)
    scale = 2.0**params.scale_bits if isinstance(params, CKKSParams) else 1.0
    head = _ciphertext_head(params, data, plain_modulus, scale)
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


def unpack_key(
    secret: bytes, public: bytes, params: LatticeParams, primes: tuple[int, ...], plain_modulus: int = 0
) -> KeyMaterial:
    """Return the key that a library saved uncompressed; errors as of `unpack_secret_key`."""
    return KeyMaterial(
        primes,
        unpack_secret_key(secret[HEADER_NBYTES:], params, primes, plain_modulus),
        unpack_public_key(public[HEADER_NBYTES:], params, primes, plain_modulus),
        plain_modulus,
    )


def unpack_ciphertext(blob: bytes, prefix: bytes, out: NDArray[np.uint64]) -> bool:
    """Fill `out` with the words of an uncompressed ciphertext; False if it is not `prefix` and so many words."""
    if len(blob) != len(prefix) + out.nbytes or not blob.startswith(prefix):
        return False
    out.view(np.uint8)[:] = np.frombuffer(blob, np.uint8, offset=len(prefix))
    return True


def unpack_secret_key(
    payload: bytes, params: LatticeParams, primes: tuple[int, ...], plain_modulus: int = 0
) -> NDArray[np.uint64]:
    """Return the words of a secret key's payload, shape (primes, N).

    Raises
    ------
    FormatError
        If the payload is not one of these params, primes and plain modulus.
    """
    rows, degree = len(primes), params.poly_modulus_degree
    expected = _secret_head(params, primes, plain_modulus)
    return _unpack(payload, expected, _SECRET_PREFIX_NBYTES, rows * degree).reshape(rows, degree)


def unpack_public_key(
    payload: bytes, params: LatticeParams, primes: tuple[int, ...], plain_modulus: int = 0
) -> NDArray[np.uint64]:
    """Return the words of a public key's payload, shape (2, primes, N); errors as of `unpack_secret_key`."""
    rows, degree = len(primes), params.poly_modulus_degree
    expected = _ciphertext_head(params, primes, plain_modulus, 1.0)
    return _unpack(payload, expected, CIPHERTEXT_PREFIX_NBYTES, 2 * rows * degree).reshape(2, rows, degree)


def _unpack(payload: bytes, head: bytes, prefix: int, count: int) -> NDArray[np.uint64]:
    if len(payload) != prefix + 8 * count or payload[: len(head)] != head:
        raise FormatError("the SEAL object is of other parameters or of another kind")
    return np.frombuffer(payload, dtype="<u8", offset=prefix).astype(np.uint64)


def _secret_head(params: LatticeParams, primes: Sequence[int], plain_modulus: int) -> bytes:
    return _PLAINTEXT.pack(parms_id(params, primes, plain_modulus), len(primes) * params.poly_modulus_degree, 1.0)


def _ciphertext_head(params: LatticeParams, primes: Sequence[int], plain_modulus: int, scale: float) -> bytes:
    identity = parms_id(params, primes, plain_modulus)
    return _CIPHERTEXT.pack(identity, 1, 2, params.poly_modulus_degree, len(primes), scale, 1)


def _words(words: NDArray[np.uint64], minor: int) -> bytes:
    return _object(_COUNT.pack(words.size) + np.ascontiguousarray(words, dtype="<u8").tobytes(), minor)


def _object(payload: bytes, minor: int) -> bytes:
    header = _HEADER.pack(_MAGIC, HEADER_NBYTES, SEAL_MAJOR, minor, 0, 0, HEADER_NBYTES + len(payload))
    return header + payload
