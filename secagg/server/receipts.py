"""Receipts for updates, and again for those whose first receipt was lost on the way."""

from __future__ import annotations

import secagg

from ..errors import SecAggError, TransportError
from .pointer import open_upload
from .run_folder import RunFolder


class Receipts:
    """Signs for what is stored.

    Parameters
    ----------
    folder : RunFolder
        Where updates and aggregates lie.
    identity : secagg.Identity or None
        The server's; without one there are no receipts, only empty bytes.
    """

    def __init__(self, folder: RunFolder, identity: secagg.Identity | None) -> None:
        self._folder = folder
        self._identity = identity

    def sign(self, update: secagg.Update) -> bytes:
        """Return the receipt for an update that is stored and added."""
        return self._of(update.header, update.tail.proofs[0].body)

    def again(self, header: secagg.Header) -> bytes:
        """Return the receipt for an update that was added before: from its file, or from the aggregate of its round.

        Raises
        ------
        TransportError
            If it lies in the bucket, which cannot be reached.
        FormatError
            If it is not there any more, or another one is: what will not last has no receipt.
        """
        if self._identity is None:
            return b""
        path = self._folder.upload_of(header.round, header.site)
        try:
            with open_upload(path) as update:
                if update.header.head == header.head:
                    return self.sign(update)
        except SecAggError as error:
            if path.exists() or type(error) is TransportError:
                raise
            # else its round has ended
        with secagg.Update.open(self._folder.path_of("aggregate", header.round)) as aggregate:
            for contribution, proof in zip(aggregate.header.contributions, aggregate.tail.proofs, strict=True):
                if contribution == header.contributions[0]:
                    return self._of(aggregate.header.of(contribution), proof.body)
        raise AssertionError("an update of a completed round is listed in its aggregate")

    def _of(self, header: secagg.Header, body: bytes) -> bytes:
        return b"" if self._identity is None else secagg.Receipt.sign(header, body, self._identity).to_bytes()
