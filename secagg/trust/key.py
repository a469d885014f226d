"""Keys: a client key that holds the secret, a server key that holds none, and their files.

A client key is two secrets that do not depend on each other. Polynomials of a lattice scheme serve encryption and
decryption alone; they are kept as canonical SEAL words (number-theoretic-transform form, one row of N words a prime),
whatever library made them. From 32 random bytes, the root, derives all else: tags, nonces, FLASHE's pads, and the keys
of stored models.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, FormatError, KeyFileError
from ..scheme.params import BGVParams, LatticeParams, Params, is_int
from ..storage.files import Source, name_of, read_source, replace_file
from ..wire.container import (
    DIGEST_NBYTES,
    MAX_FRAME_NBYTES,
    check_digest,
    digest,
    frame_digest,
    head_nbytes,
    pack_head,
    unpack_head,
)
from ..wire.header import check_epoch

#: Bytes of the root, the key of HKDF.
ROOT_NBYTES = 32

_FIELDS = frozenset(["epoch", "fingerprint", "params", "plain_modulus", "primes"])

#: No key file is larger: a secret and a public key of degree 32768 and 31 primes take 24 MiB.
MAX_KEY_FILE_NBYTES = 64 << 20


class KeyMaterial(NamedTuple):
    """What a backend generates: the whole chain of primes, secret and public key as words, and BGV's plain modulus.

    Of a lattice scheme `secret` has shape (primes, N), `public` (2, primes, N), both uint64 in NTT form, and
    `plain_modulus` is 0 in CKKS. Of FLASHE there are no primes and no words: its pads derive from the key's root.
    """

    primes: tuple[int, ...]
    secret: NDArray[np.uint64]
    public: NDArray[np.uint64]
    plain_modulus: int = 0

    def __repr__(self) -> str:  # that of a tuple would show the secret words
        return f"KeyMaterial(primes={self.primes}, secret=…, public=…, plain_modulus={self.plain_modulus})"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("the words of a key are secret and are not pickled; use ClientKey.save() and load_key()")


@dataclass(frozen=True)
class ServerKey:
    """What the aggregator knows of a key: params, moduli, epoch and fingerprint; nothing secret.

    Parameters
    ----------
    params : Params
        Params that the key was generated for.
    primes : tuple of int
        The whole chain, special prime included; empty without a lattice.
    plain_modulus : int
        BGV's plain modulus, else 0.
    epoch : int
        Counts the keys of a federation, from 0.
    fingerprint : str
        Of the client key, 64 hexadecimal digits.
    """

    params: Params
    primes: tuple[int, ...]
    plain_modulus: int
    epoch: int
    fingerprint: str

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the key file."""
        _write(path, "server-key", self._header(), b"", 0o644)

    def _header(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "fingerprint": self.fingerprint,
            "params": self.params.to_dict(),
            "plain_modulus": self.plain_modulus,
            "primes": list(self.primes),
        }


class ClientKey:
    """The key that all sites of a federation share. It decrypts every update: keep it from the server.

    Its ``repr`` shows the fingerprint only, and it refuses to be pickled.

    Parameters
    ----------
    params : Params
        Scheme parameters.
    material : KeyMaterial
        Primes and words.
    root : bytes
        32 bytes of the operating system's randomness, used for nothing else.
    epoch : int
        Counts the keys of a federation, from 0.
    """

    __slots__ = ("_material", "_root", "_server")

    def __init__(self, params: Params, material: KeyMaterial, root: bytes, epoch: int = 0) -> None:
        _check_material(params, material)
        if len(root) != ROOT_NBYTES:
            raise FormatError(f"the root of a key has {ROOT_NBYTES} bytes, not {len(root)}")
        self._material, self._root, epoch = material, root, check_epoch(epoch)
        fingerprint = _fingerprint(params, material, root, epoch)
        self._server = ServerKey(params, material.primes, material.plain_modulus, epoch, fingerprint)

    @property
    def params(self) -> Params:
        """Scheme parameters."""
        return self._server.params

    @property
    def fingerprint(self) -> str:
        """BLAKE3 over scheme, moduli, epoch, root and words, 64 hexadecimal digits."""
        return self._server.fingerprint

    @property
    def server(self) -> ServerKey:
        """The part that the server may have."""
        return self._server

    def secret_material(self) -> KeyMaterial:
        """Return the secret words. Only backends call this."""
        return self._material

    def subkey(self, purpose: bytes, *fields: bytes) -> bytes:
        """Return 32 bytes that derive from the root: HKDF-SHA256 (RFC 5869), one key for each purpose and fields.

        Fingerprint and epoch are among the fields. Each has its length before it: no two lists are alike.
        """
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        all_fields = (purpose, bytes.fromhex(self.fingerprint), self._server.epoch.to_bytes(8, "little"), *fields)
        info = b"".join(len(field).to_bytes(4, "little") + field for field in all_fields)
        return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(self._root)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the key file with permissions 0600."""
        payload = self._root + self._material.secret.tobytes() + self._material.public.tobytes()
        _write(path, "client-key", self._server._header(), payload, 0o600)

    def __repr__(self) -> str:
        return f"ClientKey({self.fingerprint[:16]}…)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a client key is secret and is not pickled; use save() and load_key()")


class KeyPair(NamedTuple):
    """`client` for every site, `server` for the aggregator."""

    client: ClientKey
    server: ServerKey


def load_key(source: Source) -> ClientKey | ServerKey:
    """Read a key file.

    Parameters
    ----------
    source : path, bytes, bytearray, memoryview or binary stream
        The file, or what it holds.

    Raises
    ------
    KeyFileError
        If the file is missing, unreadable, truncated, damaged or no key; if `source` is something else.
    """
    blob = read_source(source, MAX_KEY_FILE_NBYTES, KeyFileError, "the key file")
    try:
        return _parse(blob)
    except (FormatError, ConfigError) as error:
        raise KeyFileError(f"{name_of(source)} is not a usable key file: {error}") from error


def check_role(key: object, role: type[ClientKey] | type[ServerKey]) -> None:
    """Raise `KeyFileError` if a key of the other role was given."""
    if not isinstance(key, role):
        needed = "client key (he-client.key)" if role is ClientKey else "server key (he-server.key)"
        raise KeyFileError(f"a {needed} is needed here; got {type(key).__name__}")


def _write(path: str | os.PathLike[str], kind: str, header: dict[str, Any], payload: bytes, mode: int) -> None:
    head = pack_head(kind, header)
    with replace_file(path, mode) as file:
        file.write(head)
        for index, start in enumerate(range(0, len(payload), MAX_FRAME_NBYTES)):
            frame = payload[start : start + MAX_FRAME_NBYTES]
            file.write(frame + frame_digest(head, index, frame))


def _parse(blob: bytes) -> ClientKey | ServerKey:
    length = head_nbytes(blob)
    if len(blob) < length:
        raise FormatError(f"truncated: {len(blob)} bytes, the head alone takes {length}")
    head = blob[:length]
    kind, header = unpack_head(head)
    if kind not in ("client-key", "server-key"):
        raise FormatError(f"it is of kind {kind!r}")
    if header.keys() != _FIELDS or not isinstance(header["params"], dict):
        raise FormatError(f"its header has other keys than {', '.join(sorted(_FIELDS))}")
    params, primes, plain_modulus = Params.from_dict(header["params"]), header["primes"], header["plain_modulus"]
    sizes, plain_bits = _modulus_bits(params)
    if not isinstance(primes, list) or tuple(map(_bits, primes)) != sizes:
        raise FormatError(
            f"its primes are not primes of {list(sizes)} bits" if sizes else "it has primes but no lattice"
        )
    if _bits(plain_modulus) != plain_bits:
        raise FormatError(
            f"its plain modulus has not {plain_bits} bits" if plain_bits else "its plain modulus is not 0"
        )
    fingerprint = header["fingerprint"]
    if not isinstance(fingerprint, str) or not re.fullmatch("[0-9a-f]{64}", fingerprint):
        raise FormatError("its fingerprint is not 64 hexadecimal digits in lower case")
    server = ServerKey(params, tuple(primes), plain_modulus, check_epoch(header["epoch"]), fingerprint)
    if pack_head(kind, server._header()) != head:
        raise FormatError("its header is not in canonical form")
    payload = _payload(blob, head)
    if kind == "server-key":
        if payload:
            raise FormatError("trailing bytes")
        return server
    secret, public = _shapes(params)
    count = math.prod(secret)
    nbytes = ROOT_NBYTES + 8 * (count + math.prod(public))
    if len(payload) != nbytes:
        raise FormatError(
            f"truncated or trailing bytes: {len(payload)} of {nbytes} bytes of root and words; was it made by an "
            "earlier release? Have new kits made"
        )
    words = np.frombuffer(payload, dtype="<u8", offset=ROOT_NBYTES).astype(np.uint64)
    material = KeyMaterial(server.primes, words[:count].reshape(secret), words[count:].reshape(public), plain_modulus)
    key = ClientKey(params, material, payload[:ROOT_NBYTES], server.epoch)
    if key.fingerprint != fingerprint:
        raise FormatError(
            "its fingerprint does not fit its root and words: it is damaged, or of an earlier release; unpack the kit "
            "again, or have new ones made"
        )
    return key


def _payload(blob: bytes, head: bytes) -> bytes:
    """Return the joined payloads of the frames behind the head."""
    parts, offset, step = [], len(head), MAX_FRAME_NBYTES + DIGEST_NBYTES
    for index, start in enumerate(range(offset, len(blob), step)):
        frame = blob[start : start + step]
        if len(frame) <= DIGEST_NBYTES:
            raise FormatError("truncated: a frame without a payload")
        check_digest(frame[-DIGEST_NBYTES:], frame_digest(head, index, frame[:-DIGEST_NBYTES]), f"frame {index}")
        parts.append(frame[:-DIGEST_NBYTES])
    return b"".join(parts)


def _shapes(params: Params) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of secret and public words."""
    if not isinstance(params, LatticeParams):
        return (0,), (0,)
    rows, degree = len(params.coeff_mod_bit_sizes), params.poly_modulus_degree
    return (rows, degree), (2, rows, degree)


def _modulus_bits(params: Params) -> tuple[tuple[int, ...], int]:
    """Return the bits of each prime, and those of the plain modulus or 0."""
    sizes = params.coeff_mod_bit_sizes if isinstance(params, LatticeParams) else ()
    return sizes, params.plain_modulus_bits if isinstance(params, BGVParams) else 0


def _check_material(params: Params, material: KeyMaterial) -> None:
    secret, public = _shapes(params)
    if material.secret.shape != secret or material.public.shape != public:
        raise FormatError(f"the key's words have shapes {material.secret.shape} and {material.public.shape}")
    if material.primes:
        primes = np.array(material.primes, dtype=np.uint64)
        if (material.secret >= primes[:, None]).any() or (material.public >= primes[:, None]).any():
            raise FormatError("the key has a word that is not below its prime")


def _fingerprint(params: Params, material: KeyMaterial, root: bytes, epoch: int) -> str:
    degree = params.poly_modulus_degree if isinstance(params, LatticeParams) else 0
    numbers = [params.scheme, degree, list(material.primes), material.plain_modulus, epoch]
    head = "".join(f"{item}\0" for item in ("secagg key v3", *numbers)).encode()
    words = (np.ascontiguousarray(part, dtype="<u8").tobytes() for part in (material.secret, material.public))
    return digest(head, root, *words).hex()


def _bits(modulus: object) -> int:
    """Return the bits of what can be an odd prime or is 0, for none; -1 of anything else."""
    return modulus.bit_length() if is_int(modulus) and (modulus == 0 or (modulus > 0 and modulus % 2)) else -1
