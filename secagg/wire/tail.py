"""The tail of an update, aggregate or model: tags that verify the sum, and who signed what; docs/wire-format.md."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import FormatError
from .container import DIGEST_NBYTES, check_digest, digest, frame_digest

#: Bytes of the tag of integers, and of each tag of ciphertext words.
TAG_NBYTES, WORD_TAG_NBYTES = 16, 8
SIGNATURE_NBYTES = 64

#: In the place of a signature that nobody made.
UNSIGNED = bytes(SIGNATURE_NBYTES)

#: The tag of integers is a number modulo this prime.
TAG_MODULUS = (1 << 127) - 1

_PROOF_NBYTES = DIGEST_NBYTES + SIGNATURE_NBYTES
_PURPOSE = b"secagg update v1"


@dataclass(frozen=True)
class Proof:
    """What binds a contribution to its site: the digest of its body, and the site's signature or zeros."""

    body: bytes
    signature: bytes = UNSIGNED


@dataclass(frozen=True)
class Tail:
    """What comes after the last frame.

    Parameters
    ----------
    tags : tuple of int
        `secagg.trust.tags`: that of integers, then those of ciphertext words; sums of tags in an aggregate. None in a
        model.
    proofs : tuple of Proof
        One for each contribution, in the order of the header.
    """

    tags: tuple[int, ...]
    proofs: tuple[Proof, ...]

    def pack(self, head: bytes, frames: int) -> bytes:
        """Return the tail behind `frames` frames under `head`."""
        payload = pack_tags(self.tags) + b"".join(item.body + item.signature for item in self.proofs)
        return payload + frame_digest(head, frames, payload)

    @classmethod
    def unpack(cls, data: bytes, head: bytes, frames: int, tags: int) -> Tail:
        """Read the inverse of `pack`, with so many `tags`, from bytes of the right length.

        Raises
        ------
        DigestError
            If a byte changed.
        FormatError
            If the tag of integers is not below its modulus; the other moduli are those of a key.
        """
        payload = data[:-DIGEST_NBYTES]
        check_digest(data[-DIGEST_NBYTES:], frame_digest(head, frames, payload), "the tail")
        start = tags_nbytes(tags)
        numbers = _unpack_tags(payload[:start])
        if numbers and numbers[0] >= TAG_MODULUS:
            raise FormatError("the tag of the tail is not below 2**127 - 1")
        proofs = (payload[at : at + _PROOF_NBYTES] for at in range(start, len(payload), _PROOF_NBYTES))
        return cls(numbers, tuple(Proof(proof[:DIGEST_NBYTES], proof[DIGEST_NBYTES:]) for proof in proofs))


def pack_tags(tags: tuple[int, ...]) -> bytes:
    """Return tags as bytes: 16 of the first, 8 of each other one."""
    return b"".join(tag.to_bytes(WORD_TAG_NBYTES if index else TAG_NBYTES, "little") for index, tag in enumerate(tags))


def check_tags(tags: tuple[int, ...], moduli: tuple[int, ...]) -> None:
    """Raise `FormatError` unless each tag is below its modulus."""
    for index, (tag, modulus) in enumerate(zip(tags, moduli, strict=True)):
        if tag >= modulus:
            raise FormatError(f"tag {index} of the tail is not below its modulus {modulus}; not one of this key")


def add_tags(tags: tuple[int, ...], others: tuple[int, ...], moduli: tuple[int, ...]) -> tuple[int, ...]:
    """Return the tags of the sum of two updates from their tags."""
    return tuple((one + other) % modulus for one, other, modulus in zip(tags, others, moduli, strict=True))


def tags_nbytes(tags: int) -> int:
    """Return the size of so many tags."""
    return TAG_NBYTES + WORD_TAG_NBYTES * (tags - 1) if tags else 0


def tail_nbytes(tags: int, contributions: int) -> int:
    """Return the size of a tail of so many tags and contributions."""
    return tags_nbytes(tags) + _PROOF_NBYTES * contributions + DIGEST_NBYTES


def body_digest(head: bytes, frame_digests: Iterable[bytes]) -> bytes:
    """Return the digest of an update's body: of the digests of its head and of all its frames.

    Its tags are not in it, for their pads derive from it: no two contents ever share a pad.
    """
    return digest(head[-DIGEST_NBYTES:], *frame_digests)


def signed_message(head: bytes, body: bytes) -> bytes:
    """Return what a site signs: the digests of head and body of its update."""
    return _PURPOSE + head[-DIGEST_NBYTES:] + body


def _unpack_tags(data: bytes) -> tuple[int, ...]:
    ends = range(TAG_NBYTES, len(data) + 1, WORD_TAG_NBYTES)
    parts = (data[end - WORD_TAG_NBYTES if index else 0 : end] for index, end in enumerate(ends))
    return tuple(int.from_bytes(part, "little") for part in parts)
