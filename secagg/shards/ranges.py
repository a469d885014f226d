"""One task: the frames of a range, of all updates, are read once, checked and added; it may run anywhere, and again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby, islice
from operator import itemgetter

from ..errors import SecAggError, TransportError
from ..storage import objects
from ..storage.pinned import WINDOW_NBYTES
from ..wire.container import DIGEST_NBYTES, check_digest, digest, frame_digest
from ..wire.header import Frame
from ..words import FrameWords
from .job import RangeDone, Source, SumJob

#: Windows that are read while one is added. Fewer and larger ones take less of a processor, and a store that sends so
#: much a request, and no more, is then read more slowly.
AHEAD = 4

#: Called with the bytes of updates that were read meanwhile; what it raises ends the task.
Read = Callable[[int], None]


def sum_range(job: SumJob, index: int, read: Read = lambda nbytes: None) -> RangeDone:
    """Add a range of frames of all updates, and write the partial sum to the store.

    Every digest and every word is checked, and of a range in which one is unfit nothing is left. Memory: a few windows
    of 8 MiB, whatever the model and the number of updates. A partial sum that is there, whole, is not made again.

    Parameters
    ----------
    job : SumJob
        What is added.
    index : int
        Which range.
    read : callable, optional
        Told of the bytes that were read.

    Returns
    -------
    RangeDone
        With the digests of the frames that were added; or with all updates that are unfit in this range, and then
        nothing was written.

    Raises
    ------
    TransportError, StorageError
        If the store cannot be reached, or takes nothing.
    """
    there = _found(job, index)
    if there is not None:
        read(job.read_nbytes(index))
        return RangeDone(index, there, {}, found=True)
    unfit: dict[int, SecAggError] = {}
    try:
        digests = _sum(job, index, read, unfit)
    except SecAggError as error:
        if any(error is one for one in unfit.values()):
            return RangeDone(index, (), unfit)
        raise
    blob = b"".join(digests)
    with objects.write(job.digests_url(index)) as file:
        file.write(blob + _seal(job, index, blob))
    return RangeDone(index, digests, {})


def _sum(job: SumJob, index: int, read: Read, unfit: dict[int, SecAggError]) -> tuple[bytes, ...]:
    """Add a range; note which updates are `unfit`, and raise what is wrong with one of them in the end."""
    header, words = job.header, FrameWords(job.header.params, job.primes)
    digests = [bytearray() for _ in job.sources]
    # Ranges begin with different updates, so that not all tasks ask for the same object at once.
    order = [(index + place) % len(job.sources) for place in range(len(job.sources))]
    with objects.write(job.part_url(index)) as part, ThreadPoolExecutor(AHEAD) as readers:
        if index == 0:
            part.write(job.head)
        wanted = ((window, place) for window in _windows(job.frames(index)) for place in order if place not in unfit)
        for window, found in groupby(_ahead(readers, job.sources, wanted), key=itemgetter(0)):
            start = window[0].offset
            total = memoryview(bytearray(_nbytes(window)))
            for _, place, data in found:
                try:
                    _take(job.sources[place], window, memoryview(data.result()), words, digests[place], total, unfit)
                except TransportError:
                    raise
                except SecAggError as error:
                    unfit[place] = error
                read(len(total))
            for frame in window:
                at = frame.offset - start
                payload = total[at : at + frame.nbytes]
                total[at + frame.nbytes : at + frame.nbytes + DIGEST_NBYTES] = frame_digest(
                    header.head, frame.index, payload
                )
            part.write(total)
        if index + 1 == job.shards:
            part.write(job.tail)
        if unfit:
            raise next(iter(unfit.values()))  # and the partial sum does not appear
    return tuple(map(bytes, digests))


def _take(
    source: Source,
    window: Sequence[Frame],
    data: memoryview,
    words: FrameWords,
    digests: bytearray,
    total: memoryview,
    unfit: dict[int, SecAggError],
) -> None:
    """Check the frames of a window of one update, and add them, unless the sum is of no use any more."""
    start = window[0].offset
    for frame in window:
        at = frame.offset - start
        payload, expected = data[at : at + frame.nbytes], data[at + frame.nbytes : at + frame.nbytes + DIGEST_NBYTES]
        check_digest(expected, frame_digest(source.head_digest, frame.index, payload), f"frame {frame.index}")
        if unfit:
            words.check(frame, payload)
        else:
            words.check_and_add(frame, total[at : at + frame.nbytes], payload)
        digests += expected


def _windows(frames: Iterator[Frame]) -> Iterator[list[Frame]]:
    """Yield frames that lie together, as many as a window takes, one at least; their digests do not count."""
    window: list[Frame] = []
    left = 0
    for frame in frames:
        if window and frame.nbytes > left:
            yield window
            window = []
        left = (left if window else WINDOW_NBYTES) - frame.nbytes
        window.append(frame)
    if window:
        yield window


def _nbytes(window: Sequence[Frame]) -> int:
    """Return the size of frames that lie together, with their digests."""
    return window[-1].offset + window[-1].nbytes + DIGEST_NBYTES - window[0].offset


def _ahead(
    readers: ThreadPoolExecutor, sources: Sequence[Source], wanted: Iterator[tuple[list[Frame], int]]
) -> Iterator[tuple[list[Frame], int, Future[bytes]]]:
    """Yield windows of some sources, a few of which are being read while one is used."""
    coming: deque[tuple[list[Frame], int, Future[bytes]]] = deque()
    try:
        while True:
            for window, place in islice(wanted, 1 + AHEAD - len(coming)):
                source = sources[place]
                at = source.head_nbytes + window[0].offset
                coming.append((window, place, readers.submit(objects.read, source.pinned, at, _nbytes(window))))
            if not coming:
                return
            yield coming.popleft()
    finally:
        for _, _, future in coming:
            future.cancel()


def _found(job: SumJob, index: int) -> tuple[bytes, ...] | None:
    """Return the digests of a partial sum that an earlier task has left, if it is whole; None if not."""
    nbytes = DIGEST_NBYTES * job.frame_count(index)
    try:
        pinned = objects.pin(job.digests_url(index))
        if pinned.nbytes != nbytes * len(job.sources) + DIGEST_NBYTES:
            return None
        blob = objects.read(pinned, 0, pinned.nbytes)
        blob, seal = blob[:-DIGEST_NBYTES], blob[-DIGEST_NBYTES:]
        check_digest(seal, _seal(job, index, blob), "the list of digests")
        part = objects.pin(job.part_url(index))
        if part.nbytes != job.part_nbytes(index):
            return None
        start = (len(job.head) if index == 0 else 0) - next(job.frames(index)).offset
        for window in _windows(job.frames(index)):
            at = window[0].offset
            data = memoryview(
                objects.read(part, start + at, window[-1].offset + window[-1].nbytes + DIGEST_NBYTES - at)
            )
            for frame in window:
                payload = data[frame.offset - at :][: frame.nbytes]
                expected = data[frame.offset - at + frame.nbytes :][:DIGEST_NBYTES]
                check_digest(expected, frame_digest(job.head, frame.index, payload), f"frame {frame.index}")
    except TransportError:
        raise
    except SecAggError:  # not there, or not whole
        return None
    return tuple(blob[at : at + nbytes] for at in range(0, len(blob), nbytes))


def _seal(job: SumJob, index: int, blob: bytes) -> bytes:
    return digest(job.name.encode(), index.to_bytes(8, "little"), blob)
