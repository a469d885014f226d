"""The bucket of a server: sites put their updates there by presigned URLs, and the server reads and adds them there.

Whoever provides the bucket is trusted with nothing: an update counts once the server has read and verified it, and its
pointer says which very object that was. The server's credentials never leave it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import secagg

from ..errors import BackendUnavailableError, ConfigError, FormatError, SecAggError, StorageError, TransportError
from ..protocol.messages import BusyError, PartTarget
from ..storage.multipart import MultipartUpload, Piece, TakenError, UploadGoneError, bucket_and_key, pieces_of
from ..storage.objects import pin
from ..trust.storage_hosts import split_url
from .pointer import Pointer, head_digest
from .run_folder import RunFolder
from .spool import Spool

#: URLs of one answer: they expire, and a slow site comes back for more.
_TARGETS = 64

#: How long until what could not be deleted is tried again.
_AGAIN_SECONDS = 60.0

log = logging.getLogger(__name__)


class Bucket:
    """Where updates of sites lie in place of the run folder, which holds pointers to them.

    Parameters
    ----------
    url : str
        ``s3://bucket/prefix``; for this server alone.
    spool : Spool
        Where pointers lie until what they point to is added.
    project : secagg.Project or None
        The server's manifest.

    Raises
    ------
    ConfigError
        If the bucket is none of S3, or is not there; if its URLs are not https, or the manifest does not name their
        host, so that no site would use them.
    TransportError
        If it cannot be reached at present, or refuses the credentials.
    """

    def __init__(self, url: str, spool: Spool, project: secagg.Project | None) -> None:
        self._url = url.rstrip("/")
        self._spool = spool
        try:
            bucket_and_key(f"{self._url}/x")
            MultipartUpload.find(f"{self._url}/x")
            example = MultipartUpload(f"{self._url}/x", "x").presign(Piece(1, 0, 1))
        except (BackendUnavailableError, StorageError, TransportError) as error:
            kind = TransportError if type(error) is TransportError else ConfigError  # the first may mend itself
            raise kind(f"cannot use the bucket {self._url}: {error}") from None
        try:
            self._place, _ = split_url(example)
        except FormatError:
            raise ConfigError(
                f"the URLs of the bucket {self._url} are not https, and sites take no others: give it an endpoint with "
                "https (AWS_ENDPOINT_URL)"
            ) from None
        if not self.serves(project):
            raise ConfigError(
                f"the URLs of the bucket {self._url} are on {self._place}, which the manifest does not name, so that "
                f"no site would use them: provision with `storage: [{self._place}]` in project.yaml"
            )
        log.info("sites put updates into %s, at %s", self._url, self._place, extra={"event": "bucket"})

    def serves(self, project: secagg.Project | None) -> bool:
        """Return whether sites that have this manifest take the bucket's URLs."""
        return project is not None and self._place in project.storage

    @contextmanager
    def deposit(self, header: secagg.Header, *, layout_known: bool) -> Iterator[Deposit]:
        """Open the deposit of an update, which nobody else may have open; it stays if the block ends without its end.

        What the block refuses is deleted from the bucket.

        Parameters
        ----------
        header : secagg.Header
            Of the update, admitted.
        layout_known : bool
            Whether its size is known to be right.

        Raises
        ------
        QuotaError
            If there is no room for it.
        StorageError
            If the pointer cannot be written, or the store refuses something.
        TransportError
            If the bucket cannot be reached.
        """
        with self._spool.pointer(header) as path:
            pointer, new = Pointer.load(path), False
            if pointer is not None and not (pointer.head == head_digest(header) and pointer.lies_in(self._url)):
                self._spool.discard(path)
                pointer = None
            if pointer is None:
                pointer, new = Pointer.new(self._url, header), True
                with self._spool.room(header, layout_known=layout_known, local=False):
                    pointer.save(path)
            deposit = Deposit(path, header, pointer, self._spool, new=new)
            try:
                yield deposit
            except (SecAggError, OSError) as error:
                if type(error) is not TransportError:  # that says nothing about it
                    deposit.delete()
                raise


class Deposit:
    """An update on its way into the bucket; once it is complete it can be added.

    Parameters
    ----------
    path : Path
        Of the pointer.
    header : secagg.Header
        Of the update.
    pointer : Pointer
        What lies at `path`.
    spool : Spool
        Takes what is refused.
    new : bool
        Whether the pointer has just been made: nothing can be under way there.
    """

    def __init__(self, path: Path, header: secagg.Header, pointer: Pointer, spool: Spool, *, new: bool) -> None:
        self.path = path
        self.header = header
        self._pointer = pointer
        self._spool = spool
        self._new = new
        self._etags: dict[int, str] = {}

    @property
    def seconds(self) -> float:
        """How long ago its site announced it."""
        return max(0.0, time.time() - self._pointer.began)

    def missing(self) -> tuple[PartTarget, ...]:
        """Return where parts that are missing are to be put, some of them; none if `complete` can be called."""
        if self._pointer.etag:
            return ()
        try:
            parts = self._upload().parts()
        except UploadGoneError:  # completed by a server that died then, or aborted by the bucket's own rules
            if self._there():
                return ()
            self._keep(replace(self._pointer, upload=""))
            parts = self._upload().parts()
        pieces = pieces_of(self.header.nbytes)
        missing = [piece for piece in pieces if parts.get(piece.number, (-1, ""))[0] != piece.nbytes]
        self._etags = {piece.number: parts[piece.number][1] for piece in pieces if piece not in missing}
        upload = self._upload()
        return tuple(
            PartTarget(piece.number, piece.offset, piece.nbytes, upload.presign(piece)) for piece in missing[:_TARGETS]
        )

    def complete(self) -> None:
        """Let the object appear in the bucket, and write down which it is; nothing of it has been verified.

        Raises
        ------
        FormatError
            If something else lies there.
        BusyError
            If nothing does any more.
        """
        if self._pointer.etag:
            return
        if self._etags:  # else an earlier call has done it
            with suppress(UploadGoneError, TakenError):  # so it may have here; what lies there is verified
                self._upload().complete([self._etags[number] for number in sorted(self._etags)])
        try:
            pinned = pin(self._pointer.url)
        except FormatError:
            raise BusyError("the bucket has nothing of the update any more: put it again") from None
        if pinned.nbytes != self.header.nbytes or not pinned.etag:
            raise FormatError(f"{pinned.nbytes} bytes lie in the bucket, the head announces {self.header.nbytes}")
        self._keep(replace(self._pointer, upload="", version=pinned.version, etag=pinned.etag))

    def open(self) -> secagg.Update:
        """Open what lies in the bucket; errors as of `Pointer.open`."""
        return self._pointer.open()

    def delete(self) -> None:
        """Drop what lies in the bucket, unless it was added."""
        self._spool.discard(self.path)

    def _upload(self) -> MultipartUpload:
        if not self._pointer.upload:
            under_way = [] if self._new else MultipartUpload.find(self._pointer.url)
            upload = under_way[-1] if under_way else MultipartUpload.start(self._pointer.url)
            self._keep(replace(self._pointer, upload=upload.id))
        return MultipartUpload(self._pointer.url, self._pointer.upload)

    def _there(self) -> bool:
        try:
            return pin(self._pointer.url).nbytes == self.header.nbytes
        except FormatError:
            return False

    def _keep(self, pointer: Pointer) -> None:
        pointer.save(self.path)
        self._pointer = pointer


class Cleaner:
    """Deletes from the bucket what pointers stand for that were dropped: by and by, and again after a failure.

    Parameters
    ----------
    folder : RunFolder
        Where they lie.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._stopped = threading.Event()

    def watch(self) -> None:
        """Delete until `stop` is called."""
        while not self._stopped.is_set():
            self._folder.dropping.clear()
            self._folder.dropping.wait(None if self.clean() else _AGAIN_SECONDS)

    def stop(self) -> None:
        """End `watch`."""
        self._stopped.set()
        self._folder.dropping.set()

    def clean(self) -> bool:
        """Delete what was dropped; return whether nothing is left."""
        left = list[Exception]()  # what cannot be deleted keeps nothing else there
        for path in self._folder.dropped():
            if self._stopped.is_set():
                return False
            pointer = Pointer.load(path)
            try:
                if pointer is not None:
                    pointer.delete()
                path.unlink(missing_ok=True)
            except (SecAggError, OSError) as error:
                left.append(error)
        if left:
            log.warning(
                "cannot clear the bucket of %d objects: %s", len(left), left[0], extra={"event": "bucket_not_cleared"}
            )
        return not left
