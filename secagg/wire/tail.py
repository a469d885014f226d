"""The tail of an update, aggregate or model: a tag that verifies the sum, and who signed what; docs/wire-format.md."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import FormatError
from .container import DIGEST_NBYTES, check_digest, digest, frame_digest

TAG_NBYTES = 16
SIGNATURE_NBYTES = 64

#: In the place of a signature that nobody made.
UNSIGNED = bytes(SIGNATURE_NBYTES)

#: Tags are numbers modulo this prime.
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
    tag : int
        Of the plaintext words (`secagg.trust.tags`), a sum of tags in an aggregate; 0 where the scheme is not exact.
    proofs : tuple of Proof
        One for each contribution, in the order of the header.
    """

    tag: int
    proofs: tuple[Proof, ...]

    def pack(self, head: bytes, frames: int) -> bytes:
        """Return the tail behind `frames` frames under `head`."""
        payload = self.tag.to_bytes(TAG_NBYTES, "little") + b"".join(item.body + item.signature for item in self.proofs)
        return payload + frame_digest(head, frames, payload)

    @classmethod
    def unpack(cls, data: bytes, head: bytes, frames: int) -> Tail:
        """Read the inverse of `pack` from bytes of the right length.

        Raises
        ------
        DigestError
            If a byte changed.
        FormatError
            If the tag is not below its modulus.
        """
        payload = data[:-DIGEST_NBYTES]
        check_digest(data[-DIGEST_NBYTES:], frame_digest(head, frames, payload), "the tail")
        tag = int.from_bytes(payload[:TAG_NBYTES], "little")
        if tag >= TAG_MODULUS:
            raise FormatError("the tag of the tail is not below 2**127 - 1")
        proofs = (payload[start : start + _PROOF_NBYTES] for start in range(TAG_NBYTES, len(payload), _PROOF_NBYTES))
        return cls(tag, tuple(Proof(proof[:DIGEST_NBYTES], proof[DIGEST_NBYTES:]) for proof in proofs))


def add_tags(tags: Iterable[int]) -> int:
    """Return the tag of the sum of updates from their tags."""
    return sum(tags) % TAG_MODULUS


def tail_nbytes(contributions: int) -> int:
    """Return the size of a tail of so many contributions."""
    return TAG_NBYTES + _PROOF_NBYTES * contributions + DIGEST_NBYTES


def body_digest(head: bytes, frame_digests: Iterable[bytes], tag: int) -> bytes:
    """Return the digest of an update's body: of the digests of its head and of all its frames, and its tag."""
    return digest(head[-DIGEST_NBYTES:], *frame_digests, tag.to_bytes(TAG_NBYTES, "little"))


def signed_message(head: bytes, body: bytes) -> bytes:
    """Return what a site signs: the digests of head and body of its update."""
    return _PURPOSE + head[-DIGEST_NBYTES:] + body
