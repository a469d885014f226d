"""Uploads on their way: files that a broken upload leaves behind, and the next one goes on with.

A part has the size of the whole from the beginning, with holes (`secagg.protocol.chunks`), so the folder's
size holds what is still to come.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from types import TracebackType

import secagg

from ..errors import FormatError, QuotaError, SecAggError
from ..protocol.chunks import whole_frames
from ..protocol.messages import BusyError
from ..wire.container import DIGEST_NBYTES
from .limits import Limits
from .run_folder import RunFolder, refuse

#: What an aggregate takes beyond the size of an update for each site that it may list: name, nonce, proof.
_LISTED_NBYTES = 320

#: Suffixes of the files by the kinds of what is uploaded. Only such files of the spool are ever deleted.
SUFFIXES = {"update": ".part", "model": ".model"}


class Spool:
    """The parts of all sites: one update and one model a site at a time.

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
        self._reserved = 0  # for the aggregate of the open round
        self._used: int | None = None  # at most so many bytes of the folder; None: to be counted

    @contextmanager
    def part(self, header: secagg.Header, *, layout_known: bool) -> Iterator[Part]:
        """Open the part of an update or model, which nobody else may have open; it stays if the block breaks off.

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
        with self._lock:
            self._open.add(path)
            left = self._left.pop(path, None)
        try:
            with self._part(path, header, left, layout_known) as part:
                try:
                    yield part
                except (SecAggError, OSError):
                    part.delete()
                    raise
                finally:
                    if path.exists():
                        with self._lock:
                            self._left[path] = (header.head[-DIGEST_NBYTES:], part.frame)
        finally:
            with self._lock:
                self._open.discard(path)

    def sites(self, kind: str) -> list[str]:
        """Return the sites that have parts of a kind."""
        suffix = SUFFIXES[kind]
        return [path.name.removesuffix(suffix) for path in self._folder.spool.glob(f"*{suffix}")]

    def sweep(self, kind: str, since: int) -> None:
        """Delete the parts of a kind that nobody has open, if they are of rounds before `since`, or damaged."""
        self._used = None
        for path in self._folder.spool.glob(f"*{SUFFIXES[kind]}"):
            with self._lock:
                if path not in self._open and _round_of(path) < since:
                    path.unlink(missing_ok=True)
                    self._left.pop(path, None)

    def _part(self, path: Path, header: secagg.Header, left: tuple[bytes, int] | None, layout_known: bool) -> Part:
        if path.exists():
            if left is not None and left[0] == header.head[-DIGEST_NBYTES:]:
                return Part(path, header, left[1])
            frames = _whole_frames(path, header)
            if frames is not None:
                return Part(path, header, frames)
            path.unlink()
        with self._lock:  # what is seen to be free must be taken before anybody else looks
            used = self._check_room(header, layout_known)
            part = Part.create(path, header)
            self._used = used + header.nbytes
            return part

    def _check_room(self, header: secagg.Header, layout_known: bool) -> int:
        """Return how many bytes are used, at most; `QuotaError` if there is no room for one more upload."""
        limits = self._limits
        if not layout_known and header.nbytes > limits.max_upload_nbytes:
            raise QuotaError(
                f"the {header.kind} of {header.site!r} announces {header.nbytes} bytes; the server takes "
                f"{limits.max_upload_nbytes} bytes while it does not know the model: raise --max-upload "
                "(max_upload_nbytes) there"
            )
        if header.kind == "update":
            self._reserved = header.nbytes + _LISTED_NBYTES * header.aggregation.max_clients
        free = self._folder.free()
        # To count what hundreds of uploads have left takes longer than to receive one: only if it may be too much.
        for used in (self._used, None):
            used = self._folder.used() if used is None else used
            room = min(limits.disk_quota - used, free) - self._reserved
            if header.nbytes <= room:
                return used
        raise QuotaError(
            f"the {header.kind} of {header.site!r} announces {header.nbytes} bytes; the server has room for "
            f"{max(room, 0)} bytes: free its disk, or raise --disk-quota (disk_quota) there"
        )


class Part:
    """The file of one upload on its way, open for writing.

    Parameters
    ----------
    path : Path
        An existing file, which begins with the head and has its final size.
    header : secagg.Header
        Of the upload.
    frame : int
        The first frame that is not there.

    Attributes
    ----------
    frame : int
        The next frame that is wanted; the number of frames: only the tail is missing.
    """

    def __init__(self, path: Path, header: secagg.Header, frame: int) -> None:
        self.path = path
        self.header = header
        self.frame = frame
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            refuse(self._what, error)

    @classmethod
    def create(cls, path: Path, header: secagg.Header) -> Part:
        """Make the file of an upload of which nothing is there; `StorageError` if that fails."""
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                _write(handle, header.head, 0)
                os.ftruncate(handle, header.nbytes)
            except OSError:
                path.unlink()
                raise
            finally:
                os.close(handle)
        except OSError as error:
            refuse(f"the {header.kind} of {header.site!r}", error)
        return cls(path, header, 0)

    def receive(self, first: int, chunks: Iterable[bytes], check: Callable[[], None]) -> None:
        """Write the chunks of a stream, to the last one, and synchronise the file.

        Their digests are checked when the whole is: it is read for that anyway.

        Parameters
        ----------
        first : int
            Index of the first frame among them, at most `frame`.
        chunks : iterable of bytes
            Frames with their digests, then the tail.
        check : callable
            Called after each frame; raises if there is no use in the others.

        Raises
        ------
        FormatError
            If a chunk is not as long as the header says, or there are too many.
        BusyError
            If there are too few: the others may come yet.
        StorageError
            If the file cannot be written.
        """
        header, chunks = self.header, iter(chunks)
        self.frame = min(self.frame, first)
        for index, what, offset, nbytes in _places(header, first):
            chunk = next(chunks, None)
            if chunk is None:
                # A link that breaks looks like an end, too, and is no fault of the frames that are there.
                raise BusyError(f"the stream ended before {what}: send the rest")
            if len(chunk) != nbytes:
                raise FormatError(f"a chunk of {len(chunk)} bytes; {what} has {nbytes}")
            try:
                _write(self._file, chunk, len(header.head) + offset)
            except OSError as error:
                refuse(self._what, error)
            self.frame = min(index + 1, header.frame_count)
            check()
        if next(chunks, None) is not None:
            raise FormatError(f"trailing bytes: the head announces {header.nbytes} bytes, more were sent")
        try:
            os.fsync(self._file)
        except OSError as error:
            refuse(self._what, error)

    def delete(self) -> None:
        """Remove the file, if it is still there."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> Part:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    @property
    def _what(self) -> str:
        return f"the {self.header.kind} of {self.header.site!r}"


def _places(header: secagg.Header, first: int) -> Iterator[tuple[int, str, int, int]]:
    """Yield index, name, offset behind the head and length of each chunk from frame `first` to the tail."""
    for frame in islice(header.frames, first, None):
        yield frame.index, f"frame {frame.index}", frame.offset, frame.nbytes + DIGEST_NBYTES
    yield header.frame_count, "the tail", header.tail_offset, header.tail_nbytes


def _round_of(path: Path) -> int:
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


def _write(handle: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written
