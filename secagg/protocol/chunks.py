"""Updates, aggregates and models as streams of chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from ..wire.container import DIGEST_NBYTES
from ..wire.header import Header
from ..wire.update import Update
from .messages import Chunk

#: Called with the bytes done and the bytes in all.
Progress = Callable[[int, int], None]


def chunks_from(update: Update, frame: int, progress: Progress | None = None) -> Iterator[Chunk]:
    """Yield the head of an update, and then its chunks from a frame on.

    Parameters
    ----------
    update : Update
        Update, aggregate or model, in memory or in a file.
    frame : int
        The first frame to send. The number of frames: only the tail follows the head.
    progress : callable, optional
        Called when the next chunk, or the end, is asked for, with the bytes that the other side has, those before
        `frame` among them, and in all.
    """
    chunks, done = update.chunks(frame), skipped_nbytes(update.header, frame)
    yield Chunk(head := next(chunks), frame)
    done += len(head)
    for chunk in chunks:
        if progress is not None:
            progress(done, update.nbytes)
        yield Chunk(chunk)
        done += len(chunk)
    if progress is not None:
        progress(done, update.nbytes)


def skipped_nbytes(header: Header, frame: int) -> int:
    """Return the bytes between the head and a frame; the number of frames stands for the tail."""
    return sum(skipped.nbytes + DIGEST_NBYTES for skipped in islice(header.frames, frame))
