"""Files: read only if they are regular, written whole or not at all."""

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

from ..errors import StorageError


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """Open a regular file for reading; anything else, a pipe or a device, raises `OSError`."""
    if "\0" in os.fspath(path):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # O_NONBLOCK: opening a pipe must not wait
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file")
    return os.fdopen(handle, "rb")


@contextmanager
def replace_file(path: str | os.PathLike[str], mode: int = 0o644) -> Iterator[BinaryIO]:
    """Open a new file beside `path` that takes its place when the block ends without an error.

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
    try:
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
    except OSError as error:
        raise StorageError(f"cannot write {os.fspath(path)!r}: {error.strerror or error}") from error
