"""An update, aggregate or model on its way into a file, which a stream that breaks off leaves behind for the next one.

The file has the size of the whole from the beginning, with holes where nothing was written yet. So it can be read as a
whole one is: the first frame that was not written, or was lost in a power failure, has a digest that does not fit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from itertools import islice
from pathlib import Path
from types import TracebackType

from ..errors import FormatError, SecAggError, StorageError
from ..storage.files import os_errors
from ..wire.body import stamp_of
from ..wire.container import DIGEST_NBYTES, check_digest, frame_digest
from ..wire.header import Header
from ..wire.update import Update
from .messages import BusyError


class Part:
    """The file of one stream on its way, open for writing. A context manager, or use `close`.

    Parameters
    ----------
    path : Path
        An existing file, which begins with the head and has its final size.
    header : Header
        Of what is received.
    frame : int
        The first frame that is not there.
    failure : str
        What an error says that failed: ``"cannot write 'aggregate.secagg'"``.

    Attributes
    ----------
    frame : int
        The next frame that is wanted; the number of frames: only the tail is missing.

    Raises
    ------
    StorageError
        If the file cannot be opened.
    """

    def __init__(self, path: Path, header: Header, frame: int, failure: str) -> None:
        self.path = path
        self.header = header
        self.frame = frame
        self._failure = failure
        self._received: tuple[list[bytes], object] | None = None  # digests of all frames, and the stamp of the file
        with self._writing():
            self._file = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)

    @classmethod
    def create(cls, path: Path, header: Header, failure: str) -> Part:
        """Make the file of a stream of which nothing is there; `StorageError` if that fails."""
        with os_errors(StorageError, failure):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                _write(handle, header.head, 0)
                os.ftruncate(handle, header.nbytes)
            except OSError:
                path.unlink()
                raise
            finally:
                os.close(handle)
        return cls(path, header, 0, failure)

    def receive(self, first: int, chunks: Iterable[bytes], check: Callable[[], None]) -> None:
        """Check and write the chunks of a stream, to the last one, and synchronise the file; memory holds one chunk.

        The tail is checked when the whole is.

        Parameters
        ----------
        first : int
            Index of the first frame among them, at most `frame`.
        chunks : iterable of bytes
            Frames with their digests, then the tail.
        check : callable
            Called after each chunk; raises if there is no use in the others.

        Raises
        ------
        FormatError
            If a chunk is not as long as the header says, or there are too many (`DigestError` if a frame is damaged).
        BusyError
            If there are too few: the others may come yet.
        StorageError
            If the file cannot be written.
        """
        header, chunks, digests = self.header, iter(chunks), []
        self.frame = min(self.frame, first)
        for index, what, offset, nbytes in _places(header, first):
            chunk = next(chunks, None)
            if chunk is None:
                # A link that breaks looks like an end, too, and is no fault of the frames that are there.
                raise BusyError(f"the stream ended before {what}: send the rest")
            if len(chunk) != nbytes:
                raise FormatError(f"a chunk of {len(chunk)} bytes; {what} has {nbytes}")
            if index < header.frame_count:
                digests.append(_checked_digest(header, index, chunk))
            with self._writing():
                _write(self._file, chunk, len(header.head) + offset)
            self.frame = min(index + 1, header.frame_count)
            check()
        if next(chunks, None) is not None:
            raise FormatError(f"trailing bytes: the head announces {header.nbytes} bytes, more were sent")
        with self._writing():
            os.fsync(self._file)
            if first == 0:  # else there are frames that others have written
                self._received = digests, stamp_of(self._file)

    def open(self) -> Update:
        """Open what was received, once it is whole.

        Raises
        ------
        FormatError
            As of `Update.open`.
        """
        return (
            Update.open(self.path)
            if self._received is None
            else Update.received(self.path, self.header, *self._received)
        )

    def delete(self) -> None:
        """Remove the file, if it is still there."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def __enter__(self) -> Part:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _writing(self) -> AbstractContextManager[None]:
        return os_errors(StorageError, self._failure)


def whole_frames(update: Update) -> int:
    """Return how many frames, from the first on, are there and whole."""
    frames = 0
    with suppress(SecAggError):  # here it ends
        for _ in update.frames():
            frames += 1
    return frames


def _places(header: Header, first: int) -> Iterator[tuple[int, str, int, int]]:
    """Yield index, name, offset behind the head and length of each chunk from frame `first` to the tail."""
    for frame in islice(header.frames, first, None):
        yield frame.index, f"frame {frame.index}", frame.offset, frame.nbytes + DIGEST_NBYTES
    yield header.frame_count, "the tail", header.tail_offset, header.tail_nbytes


def _checked_digest(header: Header, index: int, chunk: bytes) -> bytes:
    """Return the digest at the end of a frame's chunk, which is that of the frame."""
    payload, expected = memoryview(chunk)[:-DIGEST_NBYTES], chunk[-DIGEST_NBYTES:]
    check_digest(expected, frame_digest(header.head, index, payload), f"frame {index}")
    return expected


def _write(handle: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written
