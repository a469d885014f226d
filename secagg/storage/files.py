"""Files: read only if they are regular, written whole or not at all, on the disk before anybody relies on them.

Beside paths, `read_source` takes contents and streams; `secagg.storage.objects.open_target` streams and URLs.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from tempfile import mkstemp
from typing import Any, BinaryIO, Protocol, TypeGuard

from ..errors import QuotaError, SecAggError, StorageError, show

#: How a file system says that it does not synchronise folders; ENOTSUP is EOPNOTSUPP on Linux.
_NOT_FOR_FOLDERS = (errno.EINVAL, errno.ENOTSUP)


class Readable(Protocol):
    """A binary stream that can be read."""

    def read(self, size: int, /) -> bytes | None:
        """Return at most so many bytes; none at the end."""


class Writable(Protocol):
    """A binary stream that can be written."""

    def write(self, data: bytes | memoryview, /) -> object:
        """Write bytes; an int says how many were taken, anything else that all were."""


Contents = bytes | bytearray | memoryview

#: What is read: a path, a stream, or the contents themselves. `bytes` are contents, never a path.
Source = str | os.PathLike[str] | Contents | Readable

#: What is written: a path or a stream.
Target = str | os.PathLike[str] | Writable


@contextmanager
def os_errors(kind: type[SecAggError], what: str, remedy: str = "") -> Iterator[None]:
    """Turn what the operating system refuses in this block into an error of secagg.

    Parameters
    ----------
    kind : type
        Of the error. A `StorageError` becomes a `QuotaError` if the disk is full.
    what : str
        What failed, as ``"cannot read 'client.key'"``; the reason follows it, and then the remedy.
    remedy : str
        What to do about it, if that can be said.
    """
    try:
        yield
    except OSError as error:
        if kind is StorageError and error.errno in (errno.ENOSPC, errno.EDQUOT):
            kind = QuotaError
        raise kind(f"{what}: {error.strerror or error}{'; ' if remedy else ''}{remedy}") from error


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """Open a regular file for reading; anything else, a pipe or a device, raises `OSError`."""
    # O_NONBLOCK: opening a pipe must not wait
    handle = os.open(absolute(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file")
    return os.fdopen(handle, "rb")


def is_path(value: object) -> TypeGuard[str | os.PathLike[str]]:
    """Return whether a value names a file."""
    return isinstance(value, (str, os.PathLike))


def absolute(path: str | os.PathLike[str]) -> Path:
    """Return a path that means the same after ``os.chdir``: what an object keeps. `OSError` if it can be none."""
    name = os.fsdecode(path)
    if "\0" in name:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    try:
        os.fsencode(name)
    except UnicodeEncodeError:  # a name out of a file, where the locale has no such character
        raise OSError(errno.EILSEQ, os.strerror(errno.EILSEQ)) from None
    return Path(name).absolute()


def name_of(source: object) -> str:
    """Return what messages call a source."""
    return repr(os.fsdecode(source)) if is_path(source) else "what was given"


def read_source(source: Source, limit: int, kind: type[SecAggError], what: str) -> bytes:
    """Return what a source holds.

    Parameters
    ----------
    source : path, bytes, bytearray, memoryview or binary stream
        A stream is read from where it stands to its end, and stays open.
    limit : int
        The most bytes that it may hold; one more at most is read.
    kind : type
        Of the error.
    what : str
        What it holds, for messages: ``"the key file"``.

    Raises
    ------
    SecAggError
        Of type `kind`: if it cannot be read, holds too much, or is no source.
    """
    if isinstance(source, str) and ("\n" in source or source.startswith("{")) and not os.path.lexists(source):
        raise kind(f"this is the text of {what}, and no path: give it as bytes, text.encode(); it is {show(source)}")
    name = name_of(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        length = memoryview(source).nbytes
        blob = bytes(source) if length <= limit else b""
    else:
        with os_errors(kind, f"cannot read {what} {name}"):
            if is_path(source):
                with open_regular(source) as file:
                    blob = file.read(limit + 1)
            else:
                blob = read_stream(check_readable(source, kind, what), limit + 1, kind)
        length = len(blob)
    if length > limit:
        raise kind(f"{name} has more than {limit} bytes: is it the right file?")
    return blob


def check_readable(source: object, kind: type[SecAggError], what: str) -> Any:
    """Return a binary stream; anything else raises an error of type `kind` that says what to pass."""
    if isinstance(source, io.TextIOBase):
        raise kind(f"{what} is given as a stream of text: open it in binary mode, as open(path, 'rb') does")
    if not callable(getattr(source, "read", None)):
        raise kind(f"{what} is given as {type(source).__name__}; pass a path, bytes or a binary stream")
    if getattr(source, "closed", False):
        raise kind(f"{what} is given as a stream that is closed: open it again")
    if isinstance(source, io.IOBase) and not source.readable():
        raise kind(f"{what} is given as a stream that is open for writing: open it by open(path, 'rb')")
    return source


def read_stream(stream: Readable, nbytes: int, kind: type[SecAggError]) -> bytes:
    """Return the next bytes of a stream: so many, or fewer if it ends; `read` itself may return less."""
    parts: list[bytes] = []
    while nbytes > 0:
        try:
            part = stream.read(nbytes)
        except (TypeError, ValueError) as error:  # of one that is closed, or none at all
            raise kind(f"the stream cannot be read: {error}") from error
        if not isinstance(part, bytes) or len(part) > nbytes:
            raise kind(f"the stream returns {type(part).__name__} where it is asked for up to {nbytes} bytes")
        if not part:
            break
        parts.append(part)
        nbytes -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def check_writable(target: object) -> Any:
    """Return a binary stream; anything else raises a `StorageError` that says what to pass."""
    if isinstance(target, io.TextIOBase):
        raise StorageError("a stream of text takes no bytes: open it in binary mode, as open(path, 'wb') does")
    if not callable(getattr(target, "write", None)):
        raise StorageError(f"cannot write to {type(target).__name__}; pass a path or a binary stream")
    if getattr(target, "closed", False):
        raise StorageError("cannot write to a stream that is closed: open it again")
    if isinstance(target, io.IOBase) and not target.writable():
        raise StorageError("cannot write to a stream that is open for reading: open it by open(path, 'wb')")
    return target


class WholeWrites:
    """A stream whose writes are whole: those of a raw file or a socket may take less than they are given."""

    def __init__(self, stream: Writable) -> None:
        self._stream = stream

    def write(self, data: bytes | memoryview) -> None:
        """Write all of it."""
        view = memoryview(data).cast("B")
        while view:
            try:
                taken = self._stream.write(view)
            except (TypeError, ValueError) as error:  # of one for text, or that is closed
                raise StorageError(f"the stream takes no bytes ({error}); pass a binary stream") from error
            if taken is None and isinstance(self._stream, io.RawIOBase):
                raise BlockingIOError(errno.EAGAIN, "it does not block, and takes nothing now")
            if not isinstance(taken, int):
                return
            if not 0 < taken <= len(view):  # it would never end, or leave something out
                raise StorageError(f"the stream says that it took {taken} of {len(view)} bytes; pass one that works")
            view = view[taken:]


@contextmanager
def replace_file(path: str | os.PathLike[str], mode: int = 0o644) -> Iterator[BinaryIO]:
    """Open a new file beside `path` that takes its place when the block ends without an error, and survives from then.

    Parameters
    ----------
    path : path
        File to make or replace.
    mode : int
        Permissions. The file has no others at any moment; secrets use 0o600.

    Raises
    ------
    StorageError
        If the file cannot be written, or `path` is none.
    """
    if not is_path(path):
        raise StorageError(f"cannot write to {type(path).__name__}; pass a path")
    with os_errors(StorageError, f"cannot write {name_of(path)}"):
        target = absolute(path)
        handle, temporary = mkstemp(prefix=f".{target.name}.", dir=target.parent)  # made with 0o600
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(handle)
                os.fchmod(handle, mode)
            os.replace(temporary, target)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        synchronise(target.parent)


def synchronise(path: str | os.PathLike[str]) -> None:
    """Bring a file, or the names in a folder, to the disk; `OSError` if that fails.

    A file system that knows no such thing for folders, as some network mounts, keeps names by means of its own.
    """
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NOT_FOR_FOLDERS or not stat.S_ISDIR(os.fstat(handle).st_mode):
            raise
    finally:
        os.close(handle)
