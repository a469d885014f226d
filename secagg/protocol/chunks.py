"""Updates and aggregates as streams of chunks: from a stream into a file, and from an update into a stream.

A file that a stream goes into has its final size from the beginning, and holes where nothing was written yet. So it can
be read as a whole one is: the first frame that was not written, or was lost in a power failure, has a digest that does
not fit.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import IO

from ..errors import FormatError
from ..wire.container import DIGEST_NBYTES, MAX_FRAME_NBYTES
from ..wire.header import Header
from ..wire.update import Update

#: Payload and digest of the largest frame.
MAX_FRAME_CHUNK_NBYTES = MAX_FRAME_NBYTES + DIGEST_NBYTES

#: Called with the bytes done and the bytes in all.
Progress = Callable[[int, int], None]


def receive(
    file: IO[bytes], header: Header, frame: int, chunks: Iterable[bytes], progress: Progress | None = None
) -> None:
    """Write the chunks of a stream to `file`, from a frame to the tail; memory holds one chunk.

    Parameters
    ----------
    file : binary file
        Open for writing, with all that comes before `frame`.
    header : Header
        Of what is received.
    frame : int
        Index of the first frame among the chunks.
    chunks : iterable of bytes
        Frames with their digests, then the tail.
    progress : callable, optional
        Called after each chunk with the bytes done and in all.

    Raises
    ------
    FormatError
        If a chunk is empty or larger than a frame, or the stream is shorter or longer than the header says.
    OSError
        If the file cannot be written.
    """
    nbytes = header.nbytes
    done = len(header.head) + skipped_nbytes(header, frame)
    os.ftruncate(file.fileno(), nbytes)
    file.seek(done)
    for chunk in chunks:
        if not 0 < len(chunk) <= MAX_FRAME_CHUNK_NBYTES:
            raise FormatError(f"a chunk of {len(chunk)} bytes; a frame has 1 to {MAX_FRAME_CHUNK_NBYTES}")
        done += len(chunk)
        if done > nbytes:
            raise FormatError(f"trailing bytes: the head announces {nbytes} bytes, {done} or more were sent")
        file.write(chunk)
        if progress is not None:
            progress(done, nbytes)
    if done < nbytes:
        raise FormatError(f"truncated: the head announces {nbytes} bytes, {done} were sent")
    file.flush()


def skipped_nbytes(header: Header, frame: int) -> int:
    """Return the bytes between the head and a frame; the number of frames stands for the tail."""
    return sum(skipped.nbytes + DIGEST_NBYTES for skipped in islice(header.frames, frame))


def chunks_from(update: Update, frame: int) -> Iterator[bytes | memoryview]:
    """Yield the head of an update, and then its chunks from a frame on."""
    chunks = update.chunks()
    yield next(chunks)
    yield from islice(chunks, frame, None)


class Outgoing:
    """The chunks of an update from some frame on, for a stream whose reader is another thread.

    The head comes first in any case. After `close` nothing of the update is read any more. An error in reading the
    update, or in `progress`, ends the stream early and stays in `error` for the thread that waits for the answer.

    Parameters
    ----------
    update : Update
        Update or model, in memory or in a file.
    frame : int
        The first frame to send. The number of frames: only the tail follows the head.
    progress : callable, optional
        Called after each chunk with the bytes that the other side has, those before `frame` among them, and in all.
    """

    def __init__(self, update: Update, frame: int = 0, progress: Progress | None = None) -> None:
        self._chunks = chunks_from(update, frame)
        self._nbytes = update.nbytes
        self._progress = progress
        self._done = skipped_nbytes(update.header, frame)
        self._begun = False
        self._lock = threading.Lock()
        self._closed = False
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        with self._lock:
            if self._closed:
                raise StopIteration
            try:
                if self._progress is not None and self._begun:
                    self._progress(self._done, self._nbytes)
                chunk = bytes(next(self._chunks))
            except StopIteration:
                raise
            except Exception as error:  # noqa: BLE001  kept for the thread that waits for the answer
                self.error, self._closed = error, True
                raise StopIteration from None
            self._begun = True
            self._done += len(chunk)
            return chunk

    def close(self) -> None:
        """Stop the stream; returns once nobody reads the update."""
        with self._lock:
            self._closed = True
