"""How often an aggregate did not decrypt under a key, and when to stop.

A server that changes ciphertexts and learns which of them sites could decrypt learns about the noise, and in the end
the key (ePrint 2024/116, 2024/127). So the reactions that one key can give away are few.
"""

from __future__ import annotations

import fcntl
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import DecryptionError, EpochError, KeyFileError
from .files import open_regular
from .key import ServerKey

#: So many failures, and an epoch is over.
MAX_FAILURES = 8

#: No such file is larger: a line a failure.
_MAX_FILE_NBYTES = 1 << 20


class Failures:
    """Counts failures under one key. Threads may share it, and processes its file.

    Parameters
    ----------
    key : ServerKey
        Counted is by its fingerprint: the key of another epoch begins at 0.
    path : path, optional
        Where the count survives a restart: each failure adds a line with the fingerprint. Without it, the count ends
        with the process.

    Raises
    ------
    KeyFileError
        If the file cannot be used or is damaged: then nobody knows how many failures there were.
    """

    def __init__(self, key: ServerKey, path: str | os.PathLike[str] | None) -> None:
        self._key = key
        self._path = None if path is None else os.fspath(path)
        self._lock = threading.Lock()
        self._here = 0
        if self._path is not None:
            try:
                os.close(self._open(os.O_CREAT))
            except OSError as error:
                raise KeyFileError(f"cannot write {self._path!r}, the count of failures: {error.strerror}") from error
        self._count()

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Let one decryption after another happen in this block, and count it if it raises `DecryptionError`.

        Raises
        ------
        EpochError
            If the key must decrypt no more.
        """
        with self._lock, self._file_lock():  # else several could each get an answer before the first is counted
            if self._count() >= MAX_FAILURES:
                raise EpochError(
                    f"{MAX_FAILURES} aggregates under the key of epoch {self._key.epoch} did not decrypt: the server "
                    "is at fault, or wants to learn the key from such failures; find out, and have the key rotated"
                )
            try:
                yield
            except DecryptionError:
                self._record()
                raise

    @contextmanager
    def _file_lock(self) -> Iterator[None]:
        """Let one process after another into the block."""
        if self._path is None:
            yield
            return
        try:
            handle = self._open()
        except OSError as error:
            raise KeyFileError(f"cannot write {self._path!r}, the count of failures: {error.strerror}") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _record(self) -> None:
        """Count one more, on the disk before anybody hears of it."""
        self._here += 1
        if self._path is not None:
            try:
                handle = self._open()
                try:
                    os.write(handle, f"{self._key.fingerprint}\n".encode())
                    os.fsync(handle)
                finally:
                    os.close(handle)
            except OSError as error:
                raise KeyFileError(f"cannot write {self._path!r}, the count of failures: {error.strerror}") from error

    def _count(self) -> int:
        if self._path is None:
            return self._here
        try:
            with open_regular(self._path) as file:
                text = file.read(_MAX_FILE_NBYTES).decode("ascii", "replace")
        except OSError as error:
            raise KeyFileError(f"cannot read {self._path!r}, the count of failures: {error.strerror}") from error
        if not re.fullmatch(r"(?:[0-9a-f]{64}\n)*", text):
            raise KeyFileError(f"{self._path!r}, the count of failures, is damaged; have the key rotated")
        return max(self._here, text.splitlines().count(self._key.fingerprint))

    def _open(self, more: int = 0) -> int:
        assert self._path is not None
        # O_NONBLOCK: opening a pipe must not wait. A line is short enough to be appended whole.
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC | more, 0o600)
