"""Uploads on their way: files that a broken upload leaves behind, and the next one goes on with.

Beside them lie pointers to those that are on their way into the bucket (`secagg.server.bucket`).

A part has the size of the whole from the beginning, with holes (`secagg.protocol.part`), so the folder's
size holds what is still to come.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import secagg

from ..errors import QuotaError, SecAggError, TransportError
from ..protocol.part import Part, whole_frames
from ..wire.container import DIGEST_NBYTES
from .limits import Limits
from .pointer import Pointer
from .run_folder import POINTER_SUFFIX, RunFolder

#: What a sum takes beyond the size of what is added for each site that it may list: name, nonce, proof.
_LISTED_NBYTES = 320

#: Suffixes of the files by the kinds of what is uploaded. Only such files of the spool are ever deleted.
SUFFIXES = {"update": ".part", "calibration": ".calibration", "model": ".model"}


class Spool:
    """The parts of all sites: one update, one calibration and one model a site at a time.

    Parameters
    ----------
    folder : RunFolder
        Where they lie.
    limits : Limits
        Disk quota, and the largest upload while the layout is not known.
    """

    def __init__(self, folder: RunFolder, limits: Limits) -> None:
        self._folder = folder
        self._limits = limits
        self._lock = threading.Lock()
        self._open: set[Path] = set()
        self._left: dict[Path, tuple[bytes, int]] = {}  # by parts that broke off: digest of the head, frames
        self._reserved = 0  # for the sum of the open stage
        self._used: int | None = None  # at most so many bytes of the folder; None: to be counted

    @contextmanager
    def part(self, header: secagg.Header, *, layout_known: bool) -> Iterator[Part]:
        """Open the part of an upload, which nobody else may have open; it stays if the block breaks off.

        What the block refuses, by an error of secagg or of the disk, is deleted.

        Parameters
        ----------
        header : secagg.Header
            Of the upload, admitted.
        layout_known : bool
            Whether its size is known to be right.

        Raises
        ------
        QuotaError
            If there is no room for it.
        StorageError
            If its file cannot be made.
        """
        path = self._folder.spool / f"{header.site}{SUFFIXES[header.kind]}"
        with self._opened(path):
            with self._lock:
                left = self._left.pop(path, None)
            with self._part(path, header, left, layout_known) as part:
                try:
                    yield part
                except (SecAggError, OSError) as error:
                    if type(error) is not TransportError:  # of the bucket: that says nothing about the part
                        part.delete()
                    raise
                finally:
                    if path.exists():
                        with self._lock:
                            self._left[path] = (header.head[-DIGEST_NBYTES:], part.frame)

    @contextmanager
    def pointer(self, header: secagg.Header) -> Iterator[Path]:
        """Give the path of the pointer to an update on its way into the bucket; it stays while the block lasts."""
        path = self._folder.spool / f"{header.site}{POINTER_SUFFIX}"
        with self._opened(path):
            yield path

    @contextmanager
    def room(self, header: secagg.Header, *, layout_known: bool, local: bool = True) -> Iterator[None]:
        """Take room for an upload, whose file the block makes; `QuotaError` if there is none.

        Parameters
        ----------
        header : secagg.Header
            Of the upload.
        layout_known : bool
            Whether its size is known to be right.
        local : bool
            Whether it lies on this disk.
        """
        with self._lock:  # what is seen to be free must be taken before anybody else looks
            used = self._check_room(header, layout_known, local)
            yield
            self._used = used + header.nbytes

    def discard(self, path: Path) -> None:
        """Remove a file of the spool, and what it points to; see `RunFolder.discard`."""
        self._folder.discard(path)

    def sites(self, kind: str) -> list[str]:
        """Return the sites that have uploads of a kind on their way."""
        found = []
        for suffix in _suffixes(kind):
            found += [path.name.removesuffix(suffix) for path in self._folder.spool.glob(f"*{suffix}")]
        return found

    def sweep(self, kind: str, since: int) -> None:
        """Delete what is of a kind and nobody has open, if it is of a round before `since`, or damaged."""
        self._used = None
        for suffix in _suffixes(kind):
            for path in self._folder.spool.glob(f"*{suffix}"):
                with self._lock:
                    if path not in self._open and _round_of(path) < since:
                        self._folder.discard(path)
                        self._left.pop(path, None)

    @contextmanager
    def _opened(self, path: Path) -> Iterator[None]:
        with self._lock:
            self._open.add(path)
        try:
            yield
        finally:
            with self._lock:
                self._open.discard(path)

    def _part(self, path: Path, header: secagg.Header, left: tuple[bytes, int] | None, layout_known: bool) -> Part:
        if path.exists():
            if left is not None and left[0] == header.head[-DIGEST_NBYTES:]:
                return Part(path, header, left[1], _failure(header))
            frames = _whole_frames(path, header)
            if frames is not None:
                return Part(path, header, frames, _failure(header))
            path.unlink()
        with self.room(header, layout_known=layout_known):
            return Part.create(path, header, _failure(header))

    def _check_room(self, header: secagg.Header, layout_known: bool, local: bool) -> int:
        """Return how many bytes are used, at most; `QuotaError` if there is no room for one more upload."""
        limits = self._limits
        if not layout_known and header.nbytes > limits.max_upload_nbytes:
            raise QuotaError(
                f"the {header.kind} of {header.site!r} announces {header.nbytes} bytes; the server takes "
                f"{limits.max_upload_nbytes} bytes while it does not know the model: raise --max-upload "
                "(max_upload_nbytes) there"
            )
        if header.kind != "model":
            self._reserved = header.nbytes + _LISTED_NBYTES * header.aggregation.max_clients
        free = self._folder.free()
        # To count what hundreds of uploads have left takes longer than to receive one: only if it may be too much.
        for used in (self._used, None):
            used = self._folder.used() if used is None else used
            left = limits.disk_quota - used
            room = (min(left, free) if local else left) - self._reserved
            if header.nbytes <= room and free >= self._reserved:
                return used
        raise QuotaError(
            f"the {header.kind} of {header.site!r} announces {header.nbytes} bytes; the server has room for "
            f"{max(room, 0)} bytes: free its disk, or raise --disk-quota (disk_quota) there"
        )


def _failure(header: secagg.Header) -> str:
    return f"the server could not store the {header.kind} of {header.site!r}"


def _suffixes(kind: str) -> tuple[str, ...]:
    return (SUFFIXES[kind], POINTER_SUFFIX) if kind == "update" else (SUFFIXES[kind],)


def _round_of(path: Path) -> int:
    if path.suffix == POINTER_SUFFIX:
        pointer = Pointer.load(path)
        return -1 if pointer is None else pointer.round
    try:
        with secagg.Update.open(path) as part:
            return part.header.round
    except SecAggError:
        return -1


def _whole_frames(path: Path, header: secagg.Header) -> int | None:
    """Return how many frames, from the first on, a file holds of this very upload; None if it is of another one."""
    try:
        with secagg.Update.open(path) as part:
            return whole_frames(part) if part.header.head == header.head else None
    except SecAggError:
        return None
