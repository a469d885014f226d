"""How often an aggregate did not decrypt under a key, and when to stop.

A sum that its tags refuse has not been decrypted, and the refusal tells nothing of the key. The count is an alarm: no
server that adds what sites have sent makes a sum that tags refuse. It leaves few guesses to whoever guesses at tags,
and bounds what reactions could tell about noise (ePrint 2024/116, 2024/127) if tags failed.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from ..errors import DecryptionError, EpochError, KeyFileError
from ..storage.files import absolute, os_errors
from ..storage.locks import open_locked
from ..storage.mutex import Mutex
from .key import ServerKey

#: So many failures, and an epoch is over.
MAX_FAILURES = 8

#: The place of a failure to come. It is on the disk before a decryption, so that a full disk cannot lose the failure.
_FREE = b"-" * 64 + b"\n"

#: No such file is larger: a line a failure.
_MAX_FILE_NBYTES = 1 << 20


class Failures:
    """Counts failures under one key. Threads may share it, and processes its file.

    Parameters
    ----------
    key : ServerKey
        Counted is by its fingerprint: the key of another epoch begins at 0.
    path : path, optional
        Where the count survives a restart: a line with the fingerprint for each failure. Without it, the count ends
        with the process, and a forked one counts its own.

    Raises
    ------
    KeyFileError
        If the file cannot be used or is damaged: then nobody knows how many failures there were.
    """

    def __init__(self, key: ServerKey, path: str | os.PathLike[str] | None) -> None:
        self._key = key
        with os_errors(KeyFileError, f"cannot use {path!r}, the count of failures"):
            self._path = None if path is None else str(absolute(path))
        self._lock = Mutex()
        self._here = 0
        if self._path is not None:
            with self._file(os.O_CREAT) as handle:
                self._read(handle)

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Let one decryption after another happen in this block, and count it if it raises `DecryptionError`.

        Raises
        ------
        EpochError
            If the key must decrypt no more.
        KeyFileError
            If a failure cannot be counted in the file: then nothing is decrypted. Should the file fail in the moment
            of a failure, which this process counts all the same, this is raised in the place of `DecryptionError`.
        """
        with self._lock.held():  # else several could each get an answer before the first is counted
            if self._path is None:
                self._check(self._here)
                with self._counted():
                    yield
                return
            with self._file() as handle:
                lines = self._read(handle)
                free = self._reserve(handle, lines)
                self._check(max(self._here, lines.count(self._key.fingerprint)))
                try:
                    with self._counted():
                        yield
                except DecryptionError:  # on the disk before anybody hears of it
                    with self._typed():
                        os.pwrite(handle, self._key.fingerprint.encode(), free)
                        os.fsync(handle)
                    raise

    def _check(self, failures: int) -> None:
        if failures >= MAX_FAILURES:
            raise EpochError(
                f"{MAX_FAILURES} aggregates under the key of epoch {self._key.epoch} did not decrypt: the server "
                "changes sums, or a site sends what does not add up; find out which, and have the key rotated"
            )

    @contextmanager
    def _counted(self) -> Iterator[None]:
        try:
            yield
        except DecryptionError:
            self._here += 1
            raise

    @contextmanager
    def _file(self, more: int = 0) -> Iterator[int]:
        """Open the file and let one process after another into the block."""
        assert self._path is not None
        with ExitStack() as stack:
            with self._typed():
                # O_NONBLOCK: a pipe must not wait
                handle = stack.enter_context(open_locked(self._path, os.O_RDWR | os.O_NONBLOCK | more))
                if not stat.S_ISREG(os.fstat(handle).st_mode):
                    raise OSError(errno.EINVAL, "not a regular file")
            yield handle

    def _typed(self) -> AbstractContextManager[None]:
        return os_errors(KeyFileError, f"cannot use {self._path!r}, the count of failures")

    def _read(self, handle: int) -> list[str]:
        with self._typed():
            text = os.pread(handle, _MAX_FILE_NBYTES, 0).decode("ascii", "replace")
        if not re.fullmatch(r"(?:[0-9a-f]{64}\n)*(?:-{64}\n)?", text):
            raise KeyFileError(
                f"{self._path!r}, the count of failures, is damaged: have the key rotated, and remove it then"
            )
        return text.splitlines()

    def _reserve(self, handle: int, lines: list[str]) -> int:
        """Return where the next failure is written, on a disk that has the room already."""
        if lines and lines[-1].startswith("-"):
            return len(_FREE) * (len(lines) - 1)
        end = len(_FREE) * len(lines)
        with self._typed():
            if os.pwrite(handle, _FREE, end) != len(_FREE):
                os.ftruncate(handle, end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(handle)
        return end
