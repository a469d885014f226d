"""Tags, signatures and bases once more, from docs/wire-format.md: Python's integers, and Ed25519 of `cryptography`."""

from __future__ import annotations

import hashlib
import json
import struct
from typing import Any

import by_hand
from blake3 import blake3
from container import AGGREGATE, CLEAR_WORDS, DIGEST_NBYTES, PRIME, UPDATE, Container, block_nbytes, unpack
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

#: Order of the group that Ed25519 signs in.
ORDER = 2**252 + 27742317777372353535851937790883648493

# Tags.


def point(secret: bytes, fingerprint: str, epoch: int, round: int, layout: bytes) -> int:
    """α of a round and layout."""
    info = by_hand.info_of("secagg mac point v1", fingerprint, epoch, round, layout)
    return int.from_bytes(by_hand.derive(secret, info), "little") % PRIME


def pad(secret: bytes, fingerprint: str, epoch: int, round: int, layout: bytes, site: str, nonce: bytes) -> int:
    """r of a site and nonce."""
    fields = (layout, site.encode("ascii"), nonce)
    info = by_hand.info_of("secagg mac pad v1", fingerprint, epoch, round, *fields)
    return int.from_bytes(by_hand.derive(secret, info), "little") % PRIME


def tag(alpha: int, words: list[int], pads: list[int]) -> int:
    """Σ αʲ·Mⱼ, j = 1 for the last word, and the pads; negative words are negative numbers."""
    total, power = sum(pads), 1
    for word in reversed(words):
        power = power * alpha % PRIME
        total += power * word
    return total % PRIME


def tag_of(container: Container, key: Container) -> int:
    """The tag that an update or aggregate of an exact scheme must have."""
    alpha, pads = secrets_of(container, key)
    return tag(alpha, words_of(container, key), pads)


def secrets_of(container: Container, key: Container) -> tuple[int, list[int]]:
    """α, and r of each contribution."""
    header = container.header
    place = (
        by_hand.secret_of(key),
        header["key"],
        header["epoch"],
        header["round"],
        layout_fingerprint(header["layout"]),
    )
    pads = [pad(*place, site, bytes.fromhex(nonce)) for site, nonce in header["contributions"]]
    return point(*place), pads


def words_of(container: Container, key: Container) -> list[int]:
    """All plaintext words: those of the encrypted section, which here is one frame, then the clear ones, signed."""
    encrypted, *clear = container.payloads
    blocks = range(len(encrypted) // block_nbytes(container.header["params"]))
    words = [word for block in blocks for word in by_hand.plain_words(container, key, block)]
    for payload in clear:
        assert len(payload) % (8 * CLEAR_WORDS) == 0
        words += [word - (word >> 63 << 64) for word in unpack(payload, 64)]
    return words


# Signatures.


def identity(name: str) -> Ed25519PrivateKey:
    """The signing key of a party, which is nobody's secret."""
    return Ed25519PrivateKey.from_private_bytes(identity_seed(name))


def identity_seed(name: str) -> bytes:
    return hashlib.sha256(f"secagg vectors identity {name}".encode()).digest()


def public(name: str) -> str:
    return identity(name).public_key().public_bytes_raw().hex()


def update_message(head: bytes, body: bytes) -> bytes:
    """What a site signs."""
    return b"secagg update v1" + head[-DIGEST_NBYTES:] + body


def receipt_message(head: bytes, body: bytes) -> bytes:
    """What the server signs."""
    return b"secagg receipt v1" + head[-DIGEST_NBYTES:] + body


def head_of(container: Container, contribution: list[str]) -> bytes:
    """The head that the update of a contribution had."""
    kind = UPDATE if container.kind == AGGREGATE else container.kind
    return Container(kind, container.header | {"contributions": [contribution]}).head


def sign(container: Container, *names: str) -> None:
    """Sign for each contribution by the key of its site, or of whom `names` says."""
    listed = container.header["contributions"]
    if container.kind != AGGREGATE:
        container.proofs = [(container.body, b"")]
    container.proofs = [
        (body, identity(name).sign(update_message(head_of(container, contribution), body)))
        for contribution, (body, _), name in zip(
            listed, container.proofs, names or [site for site, _ in listed], strict=True
        )
    ]


def verify(container: Container) -> None:
    """Hold every signature against the key of the site that is listed; `InvalidSignature` if it is another."""
    for contribution, (body, signature) in zip(container.header["contributions"], container.proofs, strict=True):
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public(contribution[0])))
        key.verify(signature, update_message(head_of(container, contribution), body))


def malleable(signature: bytes) -> bytes:
    """The same point, and S + L for S: what RFC 8032 refuses."""
    number = int.from_bytes(signature[32:], "little") + ORDER
    return signature[:32] + number.to_bytes(32, "little")


# Bases.


def layout_fingerprint(layout: list[Any]) -> bytes:
    return blake3(json.dumps(layout, separators=(",", ":")).encode()).digest()


def values_of(layout: list[Any], state: dict[str, Any]) -> bytes:
    """The bytes of all float tensors."""
    letters, parts = {"float16": "e", "float32": "f", "float64": "d"}, []
    for names, dtype, _, role, _ in layout:
        if role != "local":
            flat = flatten(state[names[0]])
            parts.append(struct.pack(f"<{len(flat)}{letters[dtype]}", *flat))
    return b"".join(parts)


def flatten(value: Any) -> list[float]:
    return [item for inner in value for item in flatten(inner)] if isinstance(value, list) else [value]


def first_base(layout: list[Any], state: dict[str, Any]) -> bytes:
    """The base that a global model has in a run without a context."""
    context = (0).to_bytes(8, "little")
    return blake3(b"secagg model v2" + layout_fingerprint(layout) + context + values_of(layout, state)).digest()


def next_base(aggregate: Container) -> bytes:
    """The base of the round after an aggregate."""
    blob, head = aggregate.to_bytes(), aggregate.head
    whole = blake3(head[-DIGEST_NBYTES:] + b"".join(aggregate.frame_digests) + blob[-DIGEST_NBYTES:]).digest()
    return blake3(b"secagg base v1" + bytes.fromhex(aggregate.header["base"]) + whole).digest()
