"""Files: read only if they are regular, written whole or not at all, on the disk before anybody relies on them."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from tempfile import mkstemp
from typing import BinaryIO

from ..errors import QuotaError, SecAggError, StorageError


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
    if "\0" in os.fspath(path):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # O_NONBLOCK: opening a pipe must not wait
    except UnicodeEncodeError:  # a name out of a file, where the locale has no such character
        raise OSError(errno.EILSEQ, os.strerror(errno.EILSEQ)) from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file")
    return os.fdopen(handle, "rb")


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
        If the file cannot be written.
    """
    target = Path(path)
    with os_errors(StorageError, f"cannot write {os.fspath(path)!r}"):
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
    """Bring a file, or the names in a folder, to the disk; `OSError` if that fails."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
