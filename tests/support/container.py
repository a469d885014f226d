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
from typing import Any, NamedTuple

from blake3 import blake3
from section_numbers import BINS, Numbers, limit_of, sent, weight_digits

MAGIC = b"SECAGG\r\n"
UPDATE, AGGREGATE, CLIENT_KEY, SERVER_KEY, MODEL, PROJECT, CALIBRATION, SCALES = 1, 2, 3, 4, 5, 6, 7, 8
#: Of what a sum is one, and kinds with a tail.
SUMS = {AGGREGATE: UPDATE, SCALES: CALIBRATION}
WITH_TAIL = (*SUMS, *SUMS.values(), MODEL)
PREAMBLE_NBYTES, DIGEST_NBYTES, SIGNATURE_NBYTES = 16, 32, 64
#: Of the tag of integers, and of each tag of ciphertext words.
TAG_NBYTES, WORD_TAG_NBYTES = 16, 8
PROOF_NBYTES = DIGEST_NBYTES + SIGNATURE_NBYTES
FRAME_NBYTES = 1 << 20
CLEAR_WORDS = FLASHE_WORDS = 4096
#: Bytes of a block of a model, as they are and encrypted.
MODEL_PLAIN, MODEL_BLOCK = (1 << 16) - 16, 1 << 16
#: Modulus of the tag of integers.
PRIME = 2**127 - 1
#: Bytes of a value of a float tensor.
FLOATS = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


@dataclass
class Container:
    """A container taken apart. `header` is the object, or the bytes themselves where a test wants other bytes.

    Updates and aggregates have `tags`, and with models `proofs`, each a body digest and a signature; `tail` stands in
    place of both where a test wants other bytes. A project manifest has a signature.
    """

    kind: int
    header: Any
    payloads: list[bytes] = field(default_factory=list)
    tags: list[int] = field(default_factory=list)
    proofs: list[tuple[bytes, bytes]] = field(default_factory=list)
    tail: bytes | None = None
    signature: bytes = bytes(SIGNATURE_NBYTES)
    magic: bytes = MAGIC
    version: int = 4
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
        place = end + DIGEST_NBYTES
        container = cls(kind, header, magic=magic, version=version, reserved=reserved)
        if kind == PROJECT:
            container.signature = blob[place:]
            assert len(container.signature) == SIGNATURE_NBYTES
            return container
        digests = []
        for index, nbytes in enumerate(frame_sizes(kind, header, len(blob) - place)):
            container.payloads.append(blob[place : place + nbytes])
            place += nbytes + DIGEST_NBYTES
            digests.append(blob[place - DIGEST_NBYTES : place])
            assert digests[-1] == frame_digest(head_digest, index, container.payloads[-1])
        if kind in WITH_TAIL:
            sizes = tag_sizes(kind, header["params"])
            tail = blob[place : place + sum(sizes) + PROOF_NBYTES * len(header["contributions"])]
            place += len(tail) + DIGEST_NBYTES
            assert blob[place - DIGEST_NBYTES : place] == frame_digest(head_digest, len(digests), tail)
            container.tags = unpack_tags(tail[: sum(sizes)], sizes)
            for start in range(sum(sizes), len(tail), PROOF_NBYTES):
                proof = tail[start : start + PROOF_NBYTES]
                container.proofs.append((proof[:DIGEST_NBYTES], proof[DIGEST_NBYTES:]))
            if kind not in SUMS:
                assert container.proofs[0][0] == body_digest(head_digest, digests)
        assert place == len(blob)
        return container

    def copy(self) -> Container:
        return copy.deepcopy(self)

    @property
    def head(self) -> bytes:
        text = self.header if isinstance(self.header, bytes) else canonical(self.header)
        length = len(text) if self.header_nbytes is None else self.header_nbytes
        head = struct.pack("<8sHBBI", self.magic, self.version, self.kind, self.reserved, length) + text
        return head + blake3(head).digest()

    @property
    def frame_digests(self) -> list[bytes]:
        head_digest = self.head[-DIGEST_NBYTES:]
        return [frame_digest(head_digest, index, payload) for index, payload in enumerate(self.payloads)]

    @property
    def body(self) -> bytes:
        """The body digest of an update or model."""
        return body_digest(self.head[-DIGEST_NBYTES:], self.frame_digests)

    @property
    def all_proofs(self) -> list[tuple[bytes, bytes]]:
        """Those of a tail: that of an update names its body, that of a sum has a proof a site."""
        if self.kind in SUMS:
            listed = self.header["contributions"] if isinstance(self.header, dict) else self.proofs
            count = len(listed) if isinstance(listed, list) else 0
            return [*self.proofs, *[(bytes(DIGEST_NBYTES), bytes(SIGNATURE_NBYTES))] * count][:count]
        return [(self.body, self.proofs[0][1] if self.proofs else bytes(SIGNATURE_NBYTES))]

    def make_tail(self) -> bytes:
        """The tail without its digest."""
        return pack_tags(self.tags) + b"".join(body + signature for body, signature in self.all_proofs)

    @property
    def tail_nbytes(self) -> int:
        """Bytes of the tail and its digest."""
        return len(self.make_tail()) + DIGEST_NBYTES

    def to_bytes(self) -> bytes:
        """Put it together, every digest made anew."""
        head, parts = self.head, []
        if self.kind == PROJECT:
            return head + self.signature
        for payload, digest in zip(self.payloads, self.frame_digests, strict=True):
            parts += [payload, digest]
        if self.kind not in (CLIENT_KEY, SERVER_KEY):
            tail = self.make_tail() if self.tail is None else self.tail
            parts += [tail, frame_digest(head[-DIGEST_NBYTES:], len(self.payloads), tail)]
        return head + b"".join(parts)


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def frame_sizes(kind: int, header: dict[str, Any], nbytes: int) -> Iterator[int]:
    """Payload sizes of the frames, from the header, or for keys, from the bytes that are there."""
    if kind in (CLIENT_KEY, SERVER_KEY):
        while nbytes > 0:
            yield min(FRAME_NBYTES, nbytes - DIGEST_NBYTES)
            nbytes -= FRAME_NBYTES + DIGEST_NBYTES
        return
    if kind == MODEL:
        nbytes = sum(FLOATS.get(dtype, 0) * prod(shape) for _, dtype, shape, *_ in header["layout"])
        nbytes += len(sent(header)) if header["aggregation"]["precision"] == "previous" else 0
        blocks, most = ceil(nbytes / MODEL_PLAIN), FRAME_NBYTES // MODEL_BLOCK
        yield from [most * MODEL_BLOCK] * (blocks // most) + [blocks % most * MODEL_BLOCK] * (blocks % most > 0)
        return
    params, numbers = header["params"], header["aggregation"]
    clear = 0
    if kind in (CALIBRATION, SCALES):
        encrypted, limit = 1 + BINS * len(sent(header)), 1
    else:
        encrypted, limit = sum(Numbers.of(header)), limit_of(params)
        clear = sum(prod(shape) for _, _, shape, role, _ in header["layout"] if role == "clear")
    for blocks, block in (
        (ceil(encrypted / block_values(params, numbers, limit)), block_nbytes(params)),
        (ceil(clear / CLEAR_WORDS), 8 * CLEAR_WORDS),
    ):
        most = FRAME_NBYTES // block
        yield from [most * block] * (blocks // most) + [blocks % most * block] * (blocks % most > 0)


class Lanes(NamedTuple):
    """How the words of a block of an exact scheme hold values."""

    words: int
    per_word: int
    bits: int
    limit: int

    def place(self, value: int) -> tuple[int, int]:
        """Word of a block, and shift in it, of one of its values."""
        return value % self.words, value // self.words * self.bits


def lanes(params: dict[str, Any], aggregation: dict[str, Any], limit: int | None = None) -> Lanes:
    """The lanes of BGV or FLASHE; those of an update without a limit."""
    limit = limit or limit_of(params)
    largest = 2 * limit * aggregation["max_clients"]
    bits, words, below = largest.bit_length(), FLASHE_WORDS, 2**64
    if params["scheme"] == "BGV":
        plain = params["plain_modulus_bits"]
        words, below = params["poly_modulus_degree"], 2**plain - 2 ** (plain - 10)
    count = 0
    while sum(largest << lane * bits for lane in range(count + 1)) < below:
        count += 1
    return Lanes(words, count, bits, limit)


def block_values(params: dict[str, Any], aggregation: dict[str, Any], limit: int | None = None) -> int:
    """Numbers a block; those of an update without a limit."""
    if params["scheme"] == "CKKS":
        return params["poly_modulus_degree"] // (1 if params["complex_slots"] else 2)
    return lanes(params, aggregation, limit).words * lanes(params, aggregation, limit).per_word


def weight_values(params: dict[str, Any]) -> int:
    """Numbers before those of the tensors, where `precision` is fixed."""
    return 1 if params["scheme"] == "CKKS" else weight_digits(params, measured=False) + 1


def data_bits(params: dict[str, Any]) -> list[int]:
    """Bits of each prime that a ciphertext carries."""
    return params["coeff_mod_bit_sizes"][:-1] or params["coeff_mod_bit_sizes"]


def element_count(bits: int) -> int:
    """Tags of the ciphertext words of a data prime of so many bits."""
    return ceil(112 / (bits - 1))


def tag_sizes(kind: int, params: dict[str, Any]) -> list[int]:
    """Bytes of each tag of a tail."""
    if kind == MODEL:
        return []
    bits = [] if params["scheme"] == "FLASHE" else data_bits(params)
    return [TAG_NBYTES] + [WORD_TAG_NBYTES] * sum(map(element_count, bits))


def tag_moduli(key: dict[str, Any]) -> list[int]:
    """Modulo what each tag of an update or aggregate is a number, from the header of a key."""
    primes = key["primes"][:-1] or key["primes"]
    return [PRIME] + [prime for prime in primes for _ in range(element_count(prime.bit_length()))]


def pack_tags(tags: list[int]) -> bytes:
    """Tags as a tail has them."""
    return b"".join(tag.to_bytes(WORD_TAG_NBYTES if index else TAG_NBYTES, "little") for index, tag in enumerate(tags))


def unpack_tags(data: bytes, sizes: list[int]) -> list[int]:
    """What `pack_tags` puts together."""
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return [int.from_bytes(data[at : at + size], "little") for at, size in zip(starts, sizes, strict=True)]


def row_offsets(params: dict[str, Any]) -> list[tuple[int, int]]:
    """Where each row of a packed block begins, and the bits of its words."""
    if params["scheme"] == "FLASHE":
        return [(0, 64)]
    place, rows = 0, []
    for bits in data_bits(params) * (1 if params.get("seeded") else 2):
        rows.append((place, bits))
        place += bits * params["poly_modulus_degree"] // 8
    return rows


def block_nbytes(params: dict[str, Any]) -> int:
    """Bytes of a packed block: both polynomials of a ciphertext, or one; or words modulo 2**64."""
    words = FLASHE_WORDS if params["scheme"] == "FLASHE" else params["poly_modulus_degree"]
    return sum(bits for _, bits in row_offsets(params)) * words // 8


def rows(block: bytes, params: dict[str, Any]) -> list[list[int]]:
    """The words of one packed block, row by row."""
    starts = [start for start, _ in row_offsets(params)] + [len(block)]
    return [unpack(block[start:end], bits) for (start, bits), end in zip(row_offsets(params), starts[1:], strict=True)]


def pack_rows(words: list[list[int]], params: dict[str, Any]) -> bytes:
    """What `rows` takes apart."""
    return b"".join(pack(row, bits) for row, (_, bits) in zip(words, row_offsets(params), strict=True))


def unpack(row: bytes, bits: int) -> list[int]:
    """Whole words, each of so many bits, least significant first."""
    words = []
    for start in range(0, len(row), bits):  # eight words take `bits` bytes
        part = row[start : start + bits]
        number = int.from_bytes(part, "little")
        words += [number >> place & (1 << bits) - 1 for place in range(0, 8 * len(part) - bits + 1, bits)]
    return words


def pack(words: list[int], bits: int) -> bytes:
    """What `unpack` takes apart."""
    number = int("".join(f"{word:0{bits}b}" for word in reversed(words)), 2)
    return number.to_bytes(len(words) * bits // 8, "little")


def put_word(payload: bytes, row_start: int, bits: int, index: int, word: int) -> bytes:
    """Replace one bit-packed word of a row."""
    number = int.from_bytes(payload, "little")
    place = 8 * row_start + bits * index
    number ^= ((number >> place) % (1 << bits) ^ word) << place
    return number.to_bytes(len(payload), "little")


def fraction_bits(aggregation: dict[str, Any]) -> int:
    """Binary places of the fixed-point words of clear tensors, whose unit is the bound of the tensor."""
    return 62 - ceil(log2(aggregation["max_clients"])) - (0 if aggregation["precision"] == "fixed" else 16)


def fingerprint(header: dict[str, Any], payload: bytes) -> str:
    """The fingerprint of a client key of this header and this payload."""
    params = header["params"]
    degree, primes = params.get("poly_modulus_degree", 0), ", ".join(map(str, header["primes"]))
    numbers = f"{params['scheme']}\0{degree}\0[{primes}]\0{header['plain_modulus']}\0{header['epoch']}\0"
    return blake3(f"secagg key v3\0{numbers}".encode() + payload).hexdigest()


def frame_digest(head_digest: bytes, index: int, payload: bytes) -> bytes:
    return blake3(head_digest + index.to_bytes(8, "little") + payload).digest()


def body_digest(head_digest: bytes, frame_digests: list[bytes]) -> bytes:
    return blake3(head_digest + b"".join(frame_digests)).digest()
