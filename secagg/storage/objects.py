"""Objects: files of a folder or of an object store, read by ranges, written whole or not at all, never changed.

A path without a scheme, or ``file://``, is of this machine and needs nothing. All others are fsspec's; where they lie
and with which credentials is told by fsspec's own configuration, or by the environment of their cloud's library.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeGuard

from ..errors import FormatError, StorageError
from .files import Target, WholeWrites, Writable, check_writable, is_path, open_regular, os_errors, replace_file
from .pinned import WINDOW_NBYTES, Pinned, Store, copy_into, shown

#: The first request of a stream: the head of most updates is in it.
_FIRST_NBYTES = 256 << 10


def is_url(value: object) -> TypeGuard[str]:
    """Return whether a value names an object of a store: ``scheme://…``."""
    return isinstance(value, str) and value.partition("://")[0].replace("+", "").isalnum() and "://" in value


def pin(url: str) -> Pinned:
    """Find an object, and remember which one it is.

    Raises
    ------
    FormatError
        If it is not there.
    TransportError
        If the store cannot be reached, or refuses.
    """
    return _store(url).pin(url)


def read(pinned: Pinned, offset: int, nbytes: int) -> bytes:
    """Return bytes of an object, exactly so many.

    Raises
    ------
    FormatError
        If it is not there any more, is another one by now, or shorter.
    TransportError
        If the store cannot be reached, or refuses.
    """
    return _store(pinned.url).read(pinned, offset, nbytes)


def write(target: str | os.PathLike[str]) -> AbstractContextManager[Writable]:
    """Open a file or an object for writing; it appears whole when the block ends without an error, or not at all.

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    return _store(target).write(target) if is_url(target) else replace_file(target)


@contextmanager
def open_target(target: Target) -> Iterator[Writable]:
    """Open what is written: a file or an object that appears whole or not at all, or a stream, which stays open.

    Raises
    ------
    StorageError
        If it cannot be written, or is neither.
    """
    if is_path(target):
        with write(target) as file:
            yield file
    else:
        stream = check_writable(target)
        with os_errors(StorageError, "cannot write to the stream", "what is in it already is of no use"):
            yield WholeWrites(stream)


def save(chunks: Iterable[bytes | memoryview], nbytes: int, target: str | os.PathLike[str]) -> None:
    """Write bytes whose number is known to a file or an object; errors as of `write`.

    On S3, what an earlier process has begun, and did not end, goes on: parts that are there are not sent again.
    """
    if is_url(target) and target.startswith("s3://"):
        from .multipart import upload

        upload(chunks, nbytes, target)
        return
    with write(target) as file:
        for chunk in chunks:
            file.write(chunk)


def list_objects(pattern: str) -> list[str]:
    """Return the URLs that a pattern with ``*`` stands for, sorted; one without it stands for itself.

    A store may list late what was written or removed a moment ago: `pin` tells what is there.
    """
    # Of what has none, "?" begins the query of a URL, and "[" may be in any name.
    return _store(pattern).list(pattern) if "*" in pattern else [pattern]


def check_target(url: str) -> None:
    """Raise `StorageError` if nothing can be written there: something that is no file has the name."""
    path = None if is_url(url) and not url.startswith("file://") else Path(_path(url))
    with os_errors(StorageError, f"cannot write {shown(url)}"):
        if path is not None and path.exists() and not path.is_file():
            raise StorageError(f"cannot write {shown(url)}: it is no file; name another place")


def remove(urls: Iterable[str]) -> None:
    """Remove objects, those that are there; `StorageError` if that fails."""
    for url in urls:
        _store(url).remove(url)


def concatenate(parts: Sequence[Pinned], url: str) -> None:
    """Make one object of parts of the same store, in this order; errors as of `read` and `write`.

    S3 copies them itself, unless they are too small for that; else they go through this process, a window at a time.
    """
    _store(url).concatenate(parts, url)


class ObjectStream:
    """A binary stream of an object. Who reads on gets it out of ever larger windows; so memory is bounded.

    Parameters
    ----------
    pinned : Pinned
        The object.
    """

    def __init__(self, pinned: Pinned) -> None:
        self._pinned = pinned
        self._at = 0
        self._window, self._window_at = b"", 0
        self._reach = _FIRST_NBYTES

    def tell(self) -> int:
        """Return the place of the next byte."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move, by whence as files do, and return the place."""
        self._at = max(0, offset + (0, self._at, self._pinned.nbytes)[whence])
        return self._at

    def read(self, nbytes: int) -> bytes:
        """Return the next bytes, fewer at the end; errors as of `read`."""
        nbytes = max(0, min(nbytes, self._pinned.nbytes - self._at))
        start = self._at - self._window_at
        if not (start >= 0 and start + nbytes <= len(self._window)):
            goes_on = 0 < start <= len(self._window)
            self._reach = min(2 * self._reach, WINDOW_NBYTES) if goes_on else _FIRST_NBYTES
            rest = self._window[start:] if goes_on else b""
            at = self._at + len(rest)
            reach = min(max(nbytes - len(rest), self._reach), self._pinned.nbytes - at)
            self._window, self._window_at, start = rest + read(self._pinned, at, reach), self._at, 0
        self._at += nbytes
        return self._window[start : start + nbytes]


class _Folder:
    """Files of this machine."""

    def pin(self, url: str) -> Pinned:
        with os_errors(FormatError, f"cannot read {_path(url)}"), open_regular(_path(url)) as file:
            state = os.fstat(file.fileno())
        return Pinned(url, state.st_size, etag=f"{state.st_ino:x}-{state.st_mtime_ns:x}")

    def read(self, pinned: Pinned, offset: int, nbytes: int) -> bytes:
        with os_errors(FormatError, f"cannot read {_path(pinned.url)}"), open_regular(_path(pinned.url)) as file:
            state = os.fstat(file.fileno())
            if pinned.etag not in ("", f"{state.st_ino:x}-{state.st_mtime_ns:x}"):
                raise FormatError(f"{_path(pinned.url)} has changed since it was looked at")
            data = os.pread(file.fileno(), nbytes, offset)
        if len(data) != nbytes:
            raise FormatError(f"{_path(pinned.url)} became shorter while it was read")
        return data

    @contextmanager
    def write(self, url: str) -> Iterator[Writable]:
        with replace_file(_path(url)) as file:
            yield file

    def list(self, pattern: str) -> list[str]:
        scheme = pattern.removesuffix(_path(pattern))
        return sorted(scheme + path for path in glob.glob(_path(pattern), recursive=True))

    def remove(self, url: str) -> None:
        path = Path(_path(url))
        with os_errors(StorageError, f"cannot remove {path}"):
            path.unlink(missing_ok=True)

    def concatenate(self, parts: Sequence[Pinned], url: str) -> None:
        with self.write(url) as target:
            copy_into(self, parts, target)


def _path(url: str) -> str:
    return url.removeprefix("file://")


def _store(url: str) -> Store:
    scheme = url.partition("://")[0] if is_url(url) else "file"
    if scheme == "file":
        return _Folder()
    from .remote import RemoteStore, S3Store

    return S3Store(scheme) if scheme in ("s3", "s3a") else RemoteStore(scheme)
