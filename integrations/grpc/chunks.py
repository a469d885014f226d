"""Updates and aggregates as streams of chunks: from a stream into a file, and from an update into a stream."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO

from secagg import Update
from secagg.errors import FormatError, StorageError

#: Of a frame's digest, which follows its payload (docs/wire-format.md).
DIGEST_NBYTES = 32

#: Payload and digest of the largest frame.
MAX_FRAME_CHUNK_NBYTES = (1 << 20) + DIGEST_NBYTES

#: Of a gRPC message: the largest head, 4 MiB of header, fits.
MAX_MESSAGE_NBYTES = 5 << 20

#: Called with the bytes done and the bytes in all.
Progress = Callable[[int, int], None]


def receive(
    file: IO[bytes], head: bytes, chunks: Iterable[bytes], nbytes: int, progress: Progress | None = None
) -> None:
    """Write a head and the chunks that follow it to `file`; memory holds one chunk.

    Parameters
    ----------
    file : binary file
        Open for writing.
    head : bytes
        The first chunk, already checked.
    chunks : iterable of bytes
        The others.
    nbytes : int
        Bytes in all, as the head says.
    progress : callable, optional
        Called after each chunk with the bytes done and in all.

    Raises
    ------
    FormatError
        If a chunk is empty or larger than a frame, or the stream is shorter or longer than `nbytes`.
    OSError
        If the file cannot be written.
    """
    done = file.write(head)
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


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file beside `path` that takes its place if nothing goes wrong; `StorageError` if it cannot be written."""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise StorageError(f"cannot write {str(path)!r}: {error.strerror or error}") from error


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
        self._chunks = _chunks_from(update, frame)
        self._nbytes = update.nbytes
        self._progress = progress
        self._done = sum(skipped.nbytes + DIGEST_NBYTES for skipped in islice(update.header.frames, frame))
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


def _chunks_from(update: Update, frame: int) -> Iterator[bytes | memoryview]:
    chunks = update.chunks()
    yield next(chunks)
    yield from islice(chunks, frame, None)
