"""Pointers: small files of the run folder that stand for what lies in the server's bucket, or is on its way there."""

from __future__ import annotations

import json
import secrets
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import secagg

from ..errors import BackendUnavailableError, FormatError, TransportError
from ..storage.files import replace_file
from ..storage.multipart import MultipartUpload, delete
from ..storage.pinned import Pinned
from ..wire.container import DIGEST_NBYTES

#: No pointer is longer: it has a URL, and a name that the store gives.
_MAX_NBYTES = 8 << 10


@dataclass(frozen=True)
class Pointer:
    """An object of the bucket.

    Parameters
    ----------
    url : str
        Where it lies, or will. No two pointers ever have the same, so that what is deleted is nobody else's.
    head : str
        Digest of the head of the update, in hexadecimal.
    round : int
        Its round.
    nbytes : int
        Its size.
    began : float
        When its site announced it, in seconds since 1970.
    upload : str
        The store's name for the multipart upload under way; empty while there may be none.
    version, etag : str
        As of `secagg.storage.objects.Pinned`; `etag` is empty until it is whole.
    """

    url: str
    head: str
    round: int
    nbytes: int
    began: float
    upload: str = ""
    version: str = ""
    etag: str = ""

    @classmethod
    def new(cls, bucket: str, header: secagg.Header) -> Pointer:
        """Return a pointer to where an update shall lie in a bucket."""
        name = f"{header.site}-{header.contributions[0].nonce.hex()[:16]}-{secrets.token_hex(4)}.secagg"
        url = f"{bucket}/round-{header.round}/{name}"
        return cls(url, head_digest(header), header.round, header.nbytes, time.time())

    @classmethod
    def load(cls, path: Path) -> Pointer | None:
        """Return the pointer in a file; None if there is something else in it, or no file."""
        with suppress(OSError, ValueError, TypeError):
            if path.stat().st_size <= _MAX_NBYTES:
                data = json.loads(path.read_bytes())
                if isinstance(data, dict) and data.keys() == {field.name for field in fields(cls)}:
                    return cls(**data)
        return None

    def save(self, path: Path) -> None:
        """Write the pointer to a file; it survives from here on. `StorageError` if that fails."""
        with replace_file(path, 0o600) as file:
            file.write(json.dumps(asdict(self)).encode())

    def lies_in(self, bucket: str) -> bool:
        """Return whether it is of this bucket: the server may have another one by now."""
        return self.url.startswith(f"{bucket}/")

    def open(self) -> secagg.Update:
        """Open the update that lies in the bucket.

        Raises
        ------
        FormatError
            If it is not there, not whole, or not the one that was announced.
        TransportError
            If the bucket cannot be reached.
        """
        if not self.etag:
            raise FormatError("it is not whole in the bucket")
        try:
            update = secagg.Update.open(Pinned(self.url, self.nbytes, self.version, self.etag))
        except BackendUnavailableError as error:  # that says nothing about it either
            raise TransportError(str(error)) from None
        if head_digest(update.header) != self.head:
            update.close()
            raise FormatError("another one than was announced lies in the bucket")
        return update

    def delete(self) -> None:
        """Delete what it points to, and what is under way there; nothing if nothing is there. Errors of the store."""
        if self.etag:
            delete(self.url, self.version or None)
            return
        for upload in MultipartUpload.find(self.url):
            upload.abort()
        delete(self.url)


def head_digest(header: secagg.Header) -> str:
    """Return what a pointer names a head by."""
    return header.head[-DIGEST_NBYTES:].hex()


def stored_nbytes(path: Path) -> int:
    """Return the size of what a file of the run folder is or points to; `OSError` if it is not there."""
    size = path.stat(follow_symlinks=False).st_size
    pointer = Pointer.load(path) if size <= _MAX_NBYTES else None
    return size if pointer is None else pointer.nbytes


def open_upload(path: Path) -> secagg.Update:
    """Open what a site has uploaded: the file, or the object of the bucket that it points to.

    Raises
    ------
    FormatError
        If it is damaged, gone or changed.
    TransportError
        If it lies in the bucket, which cannot be reached: that says nothing about it.
    """
    pointer = Pointer.load(path)
    return secagg.Update.open(path) if pointer is None else pointer.open()
