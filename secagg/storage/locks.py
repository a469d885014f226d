"""Locks of files and folders, between processes: they end with the process that holds them, however it ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import SecAggError


@contextmanager
def open_locked(path: str | os.PathLike[str], flags: int, busy: SecAggError | None = None) -> Iterator[int]:
    """Open a file or folder under an exclusive lock, which lasts until the block ends.

    A process that is forked in the block has a copy of the handle, which must not keep the lock behind the block; nor
    is it the child's to give back.

    Parameters
    ----------
    path : path
        What to open; a file that `flags` make is for its owner alone.
    flags : int
        Of `os.open`.
    busy : SecAggError, optional
        Raised if somebody else holds the lock. Without it, the call waits.

    Raises
    ------
    OSError
        If it cannot be opened or locked.
    """
    handle, owner = os.open(path, flags | os.O_CLOEXEC, 0o600), os.getpid()
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError as error:
            raise (busy or error) from error
        try:
            yield handle
        finally:
            if os.getpid() == owner:
                fcntl.flock(handle, fcntl.LOCK_UN)
    finally:
        os.close(handle)


@contextmanager
def locked_folder(folder: Path, busy: SecAggError) -> Iterator[None]:
    """Keep others who lock the folder itself, not a file in it, away during the block; errors as of `open_locked`."""
    with open_locked(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, busy):
        yield
