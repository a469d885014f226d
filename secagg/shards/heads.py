"""Which updates go into a sum: their heads and tails are read, and judged as an aggregator does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

from ..admission import Admission
from ..errors import MismatchError, QuorumError, SecAggError, TransportError
from ..storage.pinned import Pinned
from ..trust.kit import ServerKit
from ..wire.container import DIGEST_NBYTES
from ..wire.header import Header
from ..wire.tail import Tail
from ..wire.update import Update
from .job import RANGE_NBYTES, Source, SumJob

#: Heads that are read at a time.
HEADS = 16


@dataclass(frozen=True)
class _Signed:
    """An update that is fit by itself."""

    pinned: Pinned
    header: Header
    tail: Tail

    @property
    def source(self) -> Source:
        head = self.header.head
        return Source(self.pinned, head[-DIGEST_NBYTES:], len(head), self.tail.proofs[0].body)


@contextmanager
def _refusing(url: str, refused: dict[str, SecAggError]) -> Iterator[None]:
    """Note what is wrong with an update; that a store cannot be reached is no fault of one."""
    try:
        yield
    except SecAggError as error:
        if type(error) is TransportError:
            raise
        refused[url] = error


def admit(
    kit: ServerKit,
    found: Mapping[str, Pinned | SecAggError],
    target: str,
    round: int,
    shards: int | None,
    refused: dict[str, SecAggError],
    unfit: Mapping[str, SecAggError],
) -> SumJob:
    """Return the sum of all updates, `unfit` ones aside, whose heads and tails are fit; the others are `refused`."""

    def admission(kind: str) -> Admission:
        base = kit.project.base if round == 0 else None
        return Admission(kit.config, kit.key, round, base=base, project=kit.project, kind=kind)

    signed = dict[str, _Signed]()
    for url, pinned, read in _heads({url: at for url, at in found.items() if url not in unfit}):
        with _refusing(url, refused):
            if isinstance(read, SecAggError):
                raise read
            header, tail = read
            calibrated = header.kind == "calibration" and kit.config.aggregation.precision == "auto"
            alone = admission("calibration" if calibrated else "update")
            alone.check(header)
            alone.check_tail(header, tail)
            signed[url] = _Signed(pinned, header, tail)
    if not signed:
        raise QuorumError(f"round {round} has no update that can be added")
    # What nobody here knows beforehand, layout, base and scales, most sites decide, and not the one that comes first.
    votes = dict.fromkeys((update.header.common, update.header.site) for update in signed.values())
    ((common, _),) = Counter(terms for terms, _ in votes).most_common(1)
    like = next(update for update in signed.values() if update.header.common == common)
    taken, judge, sources = admission(like.header.kind), admission(like.header.kind), list[Source]()
    judge.take(like.header, like.tail)
    for url, update in signed.items():
        with _refusing(url, refused):
            if update.header.common != common:
                judge.check(update.header)
                raise MismatchError(f"the {update.header.kind} from {update.header.site} differs from most others")
            taken.check(update.header)
            taken.take(update.header, update.tail)
            sources.append(update.source)
    summed, proven = taken.conclude()
    return SumJob(
        summed.head,
        proven.pack(summed.head, summed.frame_count),
        kit.key.primes,
        tuple(sources),
        target,
        min(shards or -(-summed.tail_offset // RANGE_NBYTES), summed.frame_count),
    )


def _heads(
    found: Mapping[str, Pinned | SecAggError],
) -> Iterator[tuple[str, Pinned, tuple[Header, Tail] | SecAggError]]:
    """Yield header and tail of each object, or what is wrong with it, in order; some are read ahead."""

    def read(pinned: Pinned | SecAggError) -> tuple[Header, Tail] | SecAggError:
        if isinstance(pinned, SecAggError):
            return pinned
        try:
            with Update.open(pinned) as update:
                return update.header, update.tail
        except SecAggError as error:
            return error

    with ThreadPoolExecutor(HEADS) as executor:
        left = iter(found.items())
        while batch := list(islice(left, HEADS)):
            for (url, pinned), result in zip(batch, executor.map(read, (item for _, item in batch)), strict=True):
                yield url, pinned if isinstance(pinned, Pinned) else Pinned(url, 0), result
