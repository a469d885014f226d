"""Updates and aggregates as streams of chunks: from a stream into a file, and from an update into a stream."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from secagg import Update
from secagg.errors import FormatError, StorageError

#: Payload and digest of the largest frame (docs/wire-format.md).
MAX_FRAME_CHUNK_NBYTES = (1 << 20) + 32

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
    """The chunks of an update, for a stream whose reader is another thread.

    After `close` nothing of the update is read any more. An error in reading the update, or in `progress`, ends the
    stream early and stays in `error` for the thread that waits for the answer.
    """

    def __init__(self, update: Update, progress: Progress | None = None) -> None:
        self._chunks = iter(update.chunks())
        self._nbytes = update.nbytes
        self._progress = progress
        self._done = 0
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
                if self._progress is not None and self._done:
                    self._progress(self._done, self._nbytes)
                chunk = bytes(next(self._chunks))
            except StopIteration:
                raise
            except Exception as error:  # noqa: BLE001  kept for the thread that waits for the answer
                self.error, self._closed = error, True
                raise StopIteration from None
            self._done += len(chunk)
            return chunk

    def close(self) -> None:
        """Stop the stream; returns once nobody reads the update."""
        with self._lock:
            self._closed = True
