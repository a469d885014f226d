"""Sending an update or model to the server, and fetching an aggregate or model: one try of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import secagg

from ..errors import FormatError, RoundMismatchError, SecAggError, StorageError, TransportError
from ..protocol.chunks import Progress, chunks_from, skipped_nbytes
from ..protocol.messages import BusyError, Chunk, DownloadRequest
from ..protocol.part import Part, whole_frames
from ..storage.files import os_errors
from ..wire.container import DIGEST_NBYTES
from .link import Link

#: What is no larger is first sent without asking what the server has of it: to ask costs more than to send it, and the
#: head, which comes first, says whether all of it is there. A try after one that broke off asks.
_UNASKED_NBYTES = 4 << 20

#: Called with the header of what is downloaded.
Check = Callable[[secagg.Header], None]


class Sender:
    """Sends an update or model; each call is one try, and goes on where the one before broke off.

    Parameters
    ----------
    link : Link
        The server.
    update : secagg.Update
        Update or model.
    progress : callable, optional
        Called with the bytes that the server has and in all, in another thread perhaps.
    asks : bool
        Whether the first try, too, asks what the server has of it; one of a large update always does.

    Attributes
    ----------
    frame : int
        First frame that the server did not have when the latest try began.
    """

    def __init__(
        self, link: Link, update: secagg.Update, progress: Progress | None = None, *, asks: bool = False
    ) -> None:
        self.frame = 0
        self._asks = asks or update.nbytes > _UNASKED_NBYTES
        self._link = link
        self._update = update
        self._progress = progress

    def __call__(self, seconds: float) -> tuple[bool, bytes]:
        """Send what the server does not have yet.

        Parameters
        ----------
        seconds : float
            How long it may take.

        Returns
        -------
        bool
            Whether the server had it all, added or stored.
        bytes
            The server's receipt; empty if it gave none.

        Raises
        ------
        SecAggError, BusyError
            As of `Link`.
        FormatError
            If the server asks for a frame that there is not.
        Exception
            What `progress` raised, or reading the update.
        """
        deadline = time.monotonic() + seconds
        header = self._update.header
        asks, self._asks = self._asks, True
        if asks:
            stored = self._link.resume(header.head, seconds)
            if stored.already_added:
                return True, stored.receipt
            if stored.frame > header.frame_count:
                raise FormatError(
                    f"the server asks for frame {stored.frame}, the {header.kind} has {header.frame_count}"
                )
            self.frame = stored.frame
        chunks = chunks_from(self._update, self.frame, self._progress)
        reply = self._link.upload(chunks, deadline - time.monotonic())
        return reply.already_added, reply.receipt


def fetch(
    link: Link,
    request: DownloadRequest,
    target: Path,
    seconds: float,
    check: Check,
    progress: Progress | None = None,
) -> None:
    """Fetch the aggregate or model that `request` names to the file `target`; it appears whole or not at all.

    What a try that broke off leaves beside the target, the next one goes on with.

    Parameters
    ----------
    link : Link
        The server.
    request : DownloadRequest
        Kind, round and nonce of what is wanted.
    target : Path
        File to write.
    seconds : float
        How long it may take.
    check : callable
        Called with the header; what it raises ends the download before its frames.
    progress : callable, optional
        Called with the bytes that are there and in all.

    Raises
    ------
    SecAggError, BusyError
        As of `Link`.
    FormatError, RoundMismatchError
        If the server sends something else.
    StorageError
        If the file cannot be written.
    """
    path = target.with_name(f".{target.name}.part")
    failure = f"cannot write {str(target)!r}"
    try:
        with os_errors(StorageError, failure):
            _fetch(link, request, path, failure, seconds, check, progress)
            os.replace(path, target)
    except SecAggError as error:
        if not isinstance(error, TransportError):  # that says nothing about what is there: a certificate ran out, say
            with os_errors(StorageError, failure):
                path.unlink(missing_ok=True)
        raise


def _fetch(
    link: Link,
    request: DownloadRequest,
    path: Path,
    failure: str,
    seconds: float,
    check: Check,
    progress: Progress | None,
) -> None:
    head, frame = _left(path)
    with closing(link.download(replace(request, head=head, frame=frame), seconds)) as coming:
        chunks = _coming(coming)
        first = next(chunks, Chunk(b""))
        header = secagg.Header.from_head(bytes(first.data))
        if header.kind != request.kind:
            raise FormatError(f"the server sent kind {header.kind!r} where {request.kind!r} was asked for")
        if request.round is not None and header.round != request.round:
            raise RoundMismatchError(f"the server sent the {header.kind} of round {header.round}, not {request.round}")
        check(header)
        if first.frame and (first.frame, header.head[-DIGEST_NBYTES:]) != (frame, head):
            raise FormatError(f"the server sent frame {first.frame} on, which was not asked for")
        if first.frame:
            part = Part(path, header, frame, failure)
        else:
            path.unlink(missing_ok=True)
            part = Part.create(path, header, failure)
        with part:
            part.receive(first.frame, _pieces(chunks, header, first.frame, progress), lambda: None)


def _pieces(chunks: Iterator[Chunk], header: secagg.Header, frame: int, progress: Progress | None) -> Iterator[bytes]:
    """Yield the chunks behind the head; `FormatError` if they end early, as a link that breaks raises `BusyError`."""
    done = len(header.head) + skipped_nbytes(header, frame)
    for chunk in chunks:
        yield bytes(chunk.data)
        done += len(chunk.data)
        if progress is not None:
            progress(done, header.nbytes)
    if done < header.nbytes:
        raise FormatError(f"truncated: the head announces {header.nbytes} bytes, {done} were sent")


def _coming(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """Yield chunks; an `OSError` is the link's here, and must not be taken for one of the disk."""
    try:
        yield from chunks
    except OSError as error:
        raise BusyError(str(error)) from None


def _left(path: Path) -> tuple[bytes, int]:
    """Return of what a broken download has left: the digest of its head, and how many frames are whole."""
    try:
        with secagg.Update.open(path) as update:
            return update.header.head[-DIGEST_NBYTES:], whole_frames(update)
    except SecAggError:  # nothing of use
        return b"", 0
