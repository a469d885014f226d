"""Tags, signatures and bases once more, from docs/wire-format.md: Python's integers, and Ed25519 of `cryptography`."""

from __future__ import annotations

import hashlib
import itertools
import json
import struct
from typing import Any, NamedTuple

import by_hand
from blake3 import blake3
from container import CLEAR_WORDS, DIGEST_NBYTES, PRIME, SUMS, UPDATE, Container, element_count, rows, unpack
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

#: Order of the group that Ed25519 signs in.
ORDER = 2**252 + 27742317777372353535851937790883648493

# Tags.


class Place(NamedTuple):
    """What keys of hashes derive from: the root, and what the headers of all updates of a sum have in common."""

    root: bytes
    header: dict[str, Any]
    kind: int = UPDATE

    @property
    def common(self) -> bytes:
        """The common digest: that of the head of an update or calibration without contributions."""
        return head_of(Container(self.kind, self.header))[-DIGEST_NBYTES:]

    def subkey(self, purpose: str, *fields: bytes) -> bytes:
        info = by_hand.info_of(purpose, self.header["key"], self.header["epoch"], self.common, *fields)
        return by_hand.derive(self.root, info)


def point(place: Place) -> int:
    """α of integers."""
    return int.from_bytes(place.subkey("secagg mac point v1"), "little") % PRIME


def pad(place: Place, site: str, nonce: bytes, body: bytes) -> int:
    """r of integers, of a site, nonce and body."""
    return int.from_bytes(place.subkey("secagg mac pad v1", site.encode("ascii"), nonce, body), "little") % PRIME


def tag(alpha: int, words: list[int], pads: list[int]) -> int:
    """Σ αʲ·Mⱼ, j = 1 for the last word, and the pads; negative words are negative numbers."""
    total, power = sum(pads), 1
    for word in reversed(words):
        power = power * alpha % PRIME
        total += power * word
    return total % PRIME


class Element(NamedTuple):
    """One tag of ciphertext words: the k-th of the data prime of an index."""

    index: int
    k: int
    prime: int

    @property
    def field(self) -> bytes:
        return struct.pack("<II", self.index, self.k)


def elements(primes: list[int]) -> list[Element]:
    """Those of data primes, in the order of the tail."""
    return [
        Element(index, k, prime) for index, prime in enumerate(primes) for k in range(element_count(prime.bit_length()))
    ]


def multipliers(place: Place, element: Element, degree: int, count: int) -> tuple[list[int], list[int]]:
    """β of the words of a polynomial, and α of so many polynomials."""
    words = by_hand.samples(place.subkey("secagg word tag v1", element.field), element.prime)
    return list(itertools.islice(words, degree)), list(itertools.islice(words, count))


def word_pad(place: Place, element: Element, site: str, nonce: bytes, body: bytes) -> int:
    """r of ciphertext words, of a site, nonce and body."""
    derived = place.subkey("secagg word tag pad v1", site.encode("ascii"), nonce, body, element.field)
    return int.from_bytes(derived, "little") % element.prime


def word_tag(prime: int, beta: list[int], alpha: list[int], rows: list[list[int]], pads: list[int]) -> int:
    """Σ α_B·β_j·c_{B,j} and the pads; a row holds the words of a polynomial modulo the prime."""
    total = sum(pads)
    for factor, row in zip(alpha, rows, strict=True):
        total += factor * sum(multiplier * word for multiplier, word in zip(beta, row, strict=True))
    return total % prime


def tags_of(container: Container, key: Container) -> list[int]:
    """The tags that an update or aggregate must have."""
    place, listed = place_of(container, key), contributions_of(container)
    pads = [pad(place, *item) for item in listed]
    tags = [tag(point(place), integers_of(container, key), pads)]
    primes, params = by_hand.data_primes(key), container.header["params"]
    if not primes:
        return tags
    blocks = [rows(by_hand.packed_block(container, block), params) for block in range(by_hand.block_count(container))]
    for element in elements(primes):
        own = [row for block in blocks for row in block[element.index :: len(primes)]]
        beta, alpha = multipliers(place, element, params["poly_modulus_degree"], len(own))
        pads = [word_pad(place, element, *item) for item in listed]
        tags.append(word_tag(element.prime, beta, alpha, own, pads))
    return tags


def fit(container: Container, key: Container) -> None:
    """Give an aggregate the tags that its words must have, which only sites can compute."""
    container.tags = tags_of(container, key)


def place_of(container: Container, key: Container) -> Place:
    return Place(by_hand.root_of(key), container.header, container.kind)


def contributions_of(container: Container) -> list[tuple[str, bytes, bytes]]:
    """Sites, nonces and digests of bodies."""
    listed, bodies = container.header["contributions"], [body for body, _ in container.all_proofs]
    return [(site, bytes.fromhex(nonce), body) for (site, nonce), body in zip(listed, bodies, strict=True)]


def integers_of(container: Container, key: Container) -> list[int]:
    """The plaintext words of FLASHE, and the clear words, signed; the encrypted section here is one frame."""
    words, clear = [], container.payloads[1:]
    if container.header["params"]["scheme"] == "FLASHE":
        blocks = range(by_hand.block_count(container))
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


def head_of(container: Container, *contributions: list[str]) -> bytes:
    """The head that the update or calibration of a contribution had, or with none, what all have in common."""
    kind = SUMS.get(container.kind, container.kind)
    return Container(kind, container.header | {"contributions": list(contributions)}).head


def sign(container: Container, *names: str) -> None:
    """Sign for each contribution by the key of its site, or of whom `names` says."""
    listed = container.header["contributions"]
    if container.kind not in SUMS:
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
    return blake3(b"secagg base v1" + bytes.fromhex(aggregate.header["base"]) + whole_digest(aggregate)).digest()


def whole_digest(container: Container) -> bytes:
    """The digest of a whole container; of scales, it names them with `auto`."""
    ends = [container.head[-DIGEST_NBYTES:], *container.frame_digests, container.to_bytes()[-DIGEST_NBYTES:]]
    return blake3(b"".join(ends)).digest()
