"""Receipts: the server's signed word that an update will be in the aggregate of its round."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import FormatError, VerificationError
from ..storage.files import Contents
from ..wire.container import DIGEST_NBYTES, as_bytes
from ..wire.header import Header
from ..wire.tail import SIGNATURE_NBYTES, Proof
from ..wire.update import Update
from .identity import Identity, check_signature
from .project import Project

_PURPOSE = b"secagg receipt v1"
_NBYTES = 2 * DIGEST_NBYTES + SIGNATURE_NBYTES


@dataclass(frozen=True)
class Receipt:
    """Says that the server has taken an update.

    Parameters
    ----------
    head, body : bytes
        Digests of the update's head, which holds round, site and nonce, and of its body; 32 bytes each.
    signature : bytes
        The server's, over both.
    """

    head: bytes
    body: bytes
    signature: bytes

    @classmethod
    def of(cls, update: Update, server: Identity) -> Receipt:
        """Sign for an update that was verified and is stored."""
        return cls.sign(update.header, update.tail.proofs[0].body, server)

    @classmethod
    def sign(cls, header: Header, body: bytes, server: Identity) -> Receipt:
        """Sign for an update of this header and body digest, when it is in an aggregate already, say."""
        head = header.head[-DIGEST_NBYTES:]
        return cls(head, body, server.sign(_PURPOSE + head + body))

    def to_bytes(self) -> bytes:
        """Return the receipt as it is sent, 128 bytes."""
        return self.head + self.body + self.signature

    @classmethod
    def from_bytes(cls, blob: Contents) -> Receipt:
        """Read the inverse of `to_bytes`; `FormatError` if the length is another."""
        blob = as_bytes(blob, "a receipt")
        if len(blob) != _NBYTES:
            raise FormatError(f"a receipt has {_NBYTES} bytes, not {len(blob)}")
        return cls(blob[:DIGEST_NBYTES], blob[DIGEST_NBYTES : 2 * DIGEST_NBYTES], blob[2 * DIGEST_NBYTES :])

    def check(self, update: Update, project: Project) -> None:
        """Hold the receipt against the update that was sent.

        Raises
        ------
        SignatureError
            If it is not signed by the server of the project.
        VerificationError
            If it is for something else.
        """
        party = project.server
        check_signature(party.public, self.signature, _PURPOSE + self.head + self.body, f"the server {party.name!r}")
        if (self.head, self.body) != (update.header.head[-DIGEST_NBYTES:], update.tail.proofs[0].body):
            raise VerificationError("the server's receipt is for another update than the one that was sent")

    def covers(self, head: bytes, proof: Proof) -> bool:
        """Return whether it is for the update of this head and this proof."""
        return (self.head, self.body) == (head[-DIGEST_NBYTES:], proof.body)
