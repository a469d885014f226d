"""Where the frames of an update lie: in memory, in a file, or in a stream that somebody else has opened."""

from __future__ import annotations

import os
from io import BufferedReader
from typing import Any, Protocol

from ..errors import FormatError, StateError
from ..storage.files import os_errors, read_stream

#: The stamp of what cannot change.
FIXED = ()

_CLOSED = "the update's file is closed; open it again"
_SHORTER = "the file became shorter while it was read"


class Body(Protocol):
    """Where the frames of an update lie. Offsets count from the end of the head."""

    def read(self, offset: int, nbytes: int) -> memoryview:
        """Return `nbytes` bytes; valid until the next call."""

    def stamp(self) -> object:
        """Return what is equal as long as nothing has changed; None if nobody can tell."""

    def close(self) -> None:
        """Give resources back."""


def stamp_of(handle: int) -> object:
    """Return the stamp of a file that is open: its size and the time of its last change."""
    state = os.fstat(handle)
    return state.st_size, state.st_mtime_ns


class MemoryBody:
    """Frames in memory: `frames` holds them all; `blob` is the whole update, where it is at hand as bytes."""

    def __init__(self, frames: memoryview, blob: bytes | None = None) -> None:
        self._frames = frames
        self.blob = blob

    def read(self, offset: int, nbytes: int) -> memoryview:
        """Return a view without a copy."""
        return self._frames[offset : offset + nbytes]

    def stamp(self) -> object:
        """Return `FIXED` for bytes."""
        return None if self.blob is None else FIXED

    def close(self) -> None:
        """Do nothing: memory is given back with the object."""


class FileBody:
    """Frames in a file, read one at a time into a buffer that is used again."""

    def __init__(self, file: BufferedReader, start: int) -> None:
        self._file = file
        self._start = start
        self._buffer = bytearray()

    def read(self, offset: int, nbytes: int) -> memoryview:
        """Read from the file; a file that became shorter raises `FormatError`."""
        if self._file.closed:
            raise StateError(_CLOSED)
        if len(self._buffer) < nbytes:
            self._buffer = bytearray(nbytes)
        view = memoryview(self._buffer)[:nbytes]
        self._file.seek(self._start + offset)
        if self._file.readinto(view) != nbytes:
            raise FormatError(_SHORTER)
        return view

    def stamp(self) -> object:
        """Return size of the file and time of its last change."""
        if self._file.closed:
            raise StateError(_CLOSED)
        return stamp_of(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class StreamBody:
    """Frames in a stream that can seek, read one at a time. It belongs to whoever opened it, and stays open."""

    def __init__(self, stream: Any, start: int) -> None:
        self._stream = stream
        self._start = start
        self._closed = False

    def read(self, offset: int, nbytes: int) -> memoryview:
        """Read from the stream; one that became shorter raises `FormatError`."""
        if self._closed or getattr(self._stream, "closed", False):
            raise StateError(_CLOSED)
        with os_errors(FormatError, "cannot read the stream"):
            self._stream.seek(self._start + offset)
            data = read_stream(self._stream, nbytes, FormatError)
        if len(data) != nbytes:
            raise FormatError(_SHORTER)
        return memoryview(data)

    def stamp(self) -> object:
        """Return None: what anybody may write to is checked whenever it is read."""
        return None

    def close(self) -> None:
        """Read no more."""
        self._closed = True
