"""The container that updates, aggregates and key files share; docs/wire-format.md is its specification.

``head = preamble (16 bytes) | header (JSON) | digest of both (32 bytes)``, then frames, each a payload and the
32-byte digest that binds it to the head and to its place. What is signed ends with a tail: a frame that comes last.
"""

from __future__ import annotations

import hmac
import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, NoReturn

from ..errors import DigestError, FormatError, show
from ..scheme.ring import MAX_BLOCK_NBYTES

MAGIC = b"SECAGG\r\n"
VERSION = 4
KINDS = {
    "update": 1,
    "aggregate": 2,
    "client-key": 3,
    "server-key": 4,
    "model": 5,
    "project": 6,
    "calibration": 7,
    "scales": 8,
}
DIGEST_NBYTES = 32
PREAMBLE_NBYTES = 16
MAX_HEADER_NBYTES = 4 << 20
#: Bytes of a head besides its header.
HEAD_EXTRA_NBYTES = PREAMBLE_NBYTES + DIGEST_NBYTES
MAX_FRAME_NBYTES = MAX_BLOCK_NBYTES

_PREAMBLE = struct.Struct("<8sHBBI")
_KIND_NAMES = {code: name for name, code in KINDS.items()}


def as_bytes(blob: object, what: str) -> bytes:
    """Return contents as bytes, copied only if they are not bytes yet; `FormatError` if they are something else."""
    if not isinstance(blob, (bytes, bytearray, memoryview)):
        remedy = ": give its .tobytes()" if hasattr(blob, "tobytes") else ""
        raise FormatError(f"{what} is bytes, not {type(blob).__name__}{remedy}")
    return bytes(blob)  # what can change must not: bytes themselves are not copied by this


def fields_alone(value: Any) -> dict[str, Any]:
    """Return what is pickled of a dataclass: its fields, and not what it has computed from them and kept."""
    return {field.name: getattr(value, field.name) for field in fields(value)}


def digest(*parts: bytes | memoryview | Iterable[bytes | memoryview]) -> bytes:
    """Return the 32-byte BLAKE3 digest of the concatenated parts; of an iterable, of its items one by one.

    It finds corruption, not an attacker: it has no key.
    """
    from blake3 import blake3

    state = blake3()
    for part in parts:
        for piece in (part,) if isinstance(part, (bytes, memoryview)) else part:
            state.update(piece)
    return state.digest()


def frame_digest(head: bytes, index: int, payload: bytes | memoryview) -> bytes:
    """Return the digest of frame `index` under the head whose last 32 bytes are its own digest."""
    return digest(head[-DIGEST_NBYTES:], index.to_bytes(8, "little"), payload)


def check_digest(expected: bytes | memoryview, actual: bytes, what: str) -> None:
    """Raise `DigestError` unless the digests are equal (compared in constant time)."""
    if not hmac.compare_digest(expected, actual):
        raise DigestError(f"{what} is damaged: its digest does not fit; send or copy it again")


def pack_head(kind: str, header: dict[str, Any]) -> bytes:
    """Return the head of a container.

    Raises
    ------
    FormatError
        If the header takes more than 4 MiB.
    """
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    if len(text) > MAX_HEADER_NBYTES:
        raise FormatError(f"the header takes {len(text)} bytes; the format allows {MAX_HEADER_NBYTES}")
    body = _PREAMBLE.pack(MAGIC, VERSION, KINDS[kind], 0, len(text)) + text
    return body + digest(body)


def head_nbytes(preamble: bytes | memoryview) -> int:
    """Return the length of the whole head, after checking the first 16 bytes of a container.

    Raises
    ------
    FormatError
        Wrong magic, unknown version or kind, or a header over the cap.
    """
    if not MAGIC.startswith(bytes(preamble[: len(MAGIC)])):
        raise FormatError("not a secagg file: the magic bytes differ")
    if len(preamble) < PREAMBLE_NBYTES:
        raise FormatError(f"truncated: {len(preamble)} bytes, a container begins with {PREAMBLE_NBYTES}")
    _, version, kind, reserved, length = _PREAMBLE.unpack(preamble[:PREAMBLE_NBYTES])
    if version != VERSION:
        raise FormatError(
            f"format version {version}; this release reads version {VERSION}: make it again with this release"
        )
    if kind not in _KIND_NAMES or reserved:
        raise FormatError(f"unknown kind of container {kind} (reserved byte {reserved})")
    if length > MAX_HEADER_NBYTES:
        raise FormatError(f"the header claims {length} bytes; the format allows {MAX_HEADER_NBYTES}")
    return PREAMBLE_NBYTES + int(length) + DIGEST_NBYTES


def container_kind(preamble: bytes) -> str:
    """Return the kind of container that the first 16 bytes announce; errors as in `head_nbytes`."""
    head_nbytes(preamble)
    return _KIND_NAMES[preamble[10]]


def unpack_head(head: bytes) -> tuple[str, dict[str, Any]]:
    """Return kind and header of a head of exactly the right length.

    Raises
    ------
    FormatError
        As `head_nbytes`; a wrong length; a header that is not a strict JSON object.
    DigestError
        If a byte of the head changed.
    """
    if len(head) != head_nbytes(head):
        raise FormatError(f"the head has {len(head)} bytes; its preamble says {head_nbytes(head)}")
    check_digest(head[-DIGEST_NBYTES:], digest(head[:-DIGEST_NBYTES]), "the header")
    try:
        header = json.loads(
            head[PREAMBLE_NBYTES:-DIGEST_NBYTES].decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
        )
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the header is not strict JSON: {type(error).__name__}") from error
    if not isinstance(header, dict):
        raise FormatError("the header is not a JSON object")
    return container_kind(head), header


def check_keys(data: Mapping[str, Any], expected: frozenset[str], what: str, remedy: str) -> None:
    """Raise `FormatError`, which says `what` it is of and the `remedy`, unless a header has the keys expected."""
    missing, more = expected - data.keys(), data.keys() - expected
    if missing or more:
        parts = [f"{word} {show(sorted(keys))}" for word, keys in (("without", missing), ("with", more)) if keys]
        raise FormatError(f"{what} has the keys of another release, {' and '.join(parts)}: {remedy}")


def read_hex(value: object, nbytes: int, name: str) -> bytes:
    """Return the bytes that lower-case hexadecimal stands for; anything else raises `FormatError`."""
    if not isinstance(value, str) or len(value) != 2 * nbytes or not all(char in "0123456789abcdef" for char in value):
        raise FormatError(f"{name} is not {nbytes} bytes in lower-case hexadecimal")
    return bytes.fromhex(value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    block = dict(pairs)
    if len(block) != len(pairs):
        raise ValueError("duplicate key")
    return block


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
