"""The wire format once more, written from docs/wire-format.md alone: it shares no code with secagg.

It takes containers apart and puts them together again, with valid digests, around whatever a test has changed.
"""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import ceil, log2, prod
from typing import Any

from blake3 import blake3

MAGIC = b"SECAGG\r\n"
UPDATE, AGGREGATE, CLIENT_KEY, SERVER_KEY = 1, 2, 3, 4
PREAMBLE_NBYTES, DIGEST_NBYTES = 16, 32
FRAME_NBYTES = 1 << 20
CLEAR_WORDS = 4096


@dataclass
class Container:
    """A container taken apart. `header` is the object, or the bytes themselves where a test wants other bytes."""

    kind: int
    header: Any
    payloads: list[bytes] = field(default_factory=list)
    magic: bytes = MAGIC
    version: int = 1
    reserved: int = 0
    header_nbytes: int | None = None

    @classmethod
    def read(cls, blob: bytes) -> Container:
        """Take a valid container apart, holding each digest against the specification."""
        magic, version, kind, reserved, length = struct.unpack("<8sHBBI", blob[:PREAMBLE_NBYTES])
        end = PREAMBLE_NBYTES + length
        header = json.loads(blob[PREAMBLE_NBYTES:end])
        head_digest = blob[end : end + DIGEST_NBYTES]
        assert head_digest == blake3(blob[:end]).digest()
        place, payloads = end + DIGEST_NBYTES, []
        for index, nbytes in enumerate(frame_sizes(kind, header, len(blob) - place)):
            payload, place = blob[place : place + nbytes], place + nbytes
            assert blob[place : place + DIGEST_NBYTES] == _frame_digest(head_digest, index, payload)
            payloads.append(payload)
            place += DIGEST_NBYTES
        assert place == len(blob)
        return cls(kind, header, payloads, magic, version, reserved)

    def copy(self) -> Container:
        return copy.deepcopy(self)

    @property
    def head(self) -> bytes:
        text = self.header if isinstance(self.header, bytes) else canonical(self.header)
        length = len(text) if self.header_nbytes is None else self.header_nbytes
        head = struct.pack("<8sHBBI", self.magic, self.version, self.kind, self.reserved, length) + text
        return head + blake3(head).digest()

    def to_bytes(self) -> bytes:
        """Put it together, every digest made anew."""
        head = self.head
        frames = (
            payload + _frame_digest(head[-DIGEST_NBYTES:], index, payload)
            for index, payload in enumerate(self.payloads)
        )
        return head + b"".join(frames)


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def frame_sizes(kind: int, header: dict[str, Any], nbytes: int) -> Iterator[int]:
    """Payload sizes of the frames, from the header, or for keys, from the bytes that are there."""
    if kind in (CLIENT_KEY, SERVER_KEY):
        while nbytes > 0:
            yield min(FRAME_NBYTES, nbytes - DIGEST_NBYTES)
            nbytes -= FRAME_NBYTES + DIGEST_NBYTES
        return
    values = {
        role: sum(prod(shape) for _, _, shape, its in header["layout"] if its == role)
        for role in ("encrypted", "clear")
    }
    degree = header["params"]["poly_modulus_degree"]
    for blocks, block in (
        (ceil((1 + values["encrypted"]) / (degree // 2)), block_nbytes(header["params"])),
        (ceil(values["clear"] / CLEAR_WORDS), 8 * CLEAR_WORDS),
    ):
        most = FRAME_NBYTES // block
        yield from [most * block] * (blocks // most) + [blocks % most * block] * (blocks % most > 0)


def data_bits(params: dict[str, Any]) -> list[int]:
    return params["coeff_mod_bit_sizes"][:-1] or params["coeff_mod_bit_sizes"]


def block_nbytes(params: dict[str, Any]) -> int:
    """Bytes of a packed ciphertext: two polynomials, a row a data prime."""
    return 2 * sum(data_bits(params)) * params["poly_modulus_degree"] // 8


def row_offsets(params: dict[str, Any]) -> list[tuple[int, int]]:
    """Where each row of a packed ciphertext begins, and the bits of its words."""
    place, rows = 0, []
    for bits in data_bits(params) * 2:
        rows.append((place, bits))
        place += bits * params["poly_modulus_degree"] // 8
    return rows


def put_word(payload: bytes, row_start: int, bits: int, index: int, word: int) -> bytes:
    """Replace one bit-packed word of a row."""
    number = int.from_bytes(payload, "little")
    place = 8 * row_start + bits * index
    number ^= ((number >> place) % (1 << bits) ^ word) << place
    return number.to_bytes(len(payload), "little")


def fraction_bits(aggregation: dict[str, Any]) -> int:
    """Binary places of the fixed-point words of clear tensors."""
    bounds = aggregation["max_abs"]
    largest = max(bounds.values()) if isinstance(bounds, dict) else bounds
    return 62 - ceil(log2(aggregation["max_clients"]) + max(log2(largest), 0))


def _frame_digest(head_digest: bytes, index: int, payload: bytes) -> bytes:
    return blake3(head_digest + index.to_bytes(8, "little") + payload).digest()
