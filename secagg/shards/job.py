"""What is to be added, and in which ranges: all that a task must know, and nothing secret."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Protocol

from ..errors import SecAggError
from ..storage.objects import is_url
from ..storage.pinned import Pinned
from ..wire.container import DIGEST_NBYTES, digest, fields_alone
from ..wire.header import Frame, Header

#: Bytes of a sum in a range, unless the number of shards is given: enough to copy within S3, and many for a cluster.
RANGE_NBYTES = 32 << 20


@dataclass(frozen=True)
class Source:
    """An update that was admitted.

    Parameters
    ----------
    pinned : Pinned
        Where it lies.
    head_digest : bytes
        The digest of its head, 32 bytes, to which its frames are bound.
    head_nbytes : int
        Where its frames begin.
    body : bytes
        The digest of its body that its site has signed, 32 bytes.
    """

    pinned: Pinned
    head_digest: bytes
    head_nbytes: int
    body: bytes


@dataclass(frozen=True)
class SumJob:
    """The sum of some updates.

    Parameters
    ----------
    head, tail : bytes
        Of the sum, packed: which updates are in it is known before their frames are read.
    primes : tuple of int
        Of the key; empty where the scheme has none.
    sources : tuple of Source
        The updates, in the order of the head.
    target : str
        Where the sum is to lie; partial sums lie beside it.
    shards : int
        Number of ranges, 1 to the number of frames.
    """

    head: bytes
    tail: bytes
    primes: tuple[int, ...]
    sources: tuple[Source, ...]
    target: str
    shards: int

    __getstate__ = fields_alone

    def anywhere(self) -> SumJob:
        """Return the same sum with absolute paths: other machines work in other folders."""
        placed = (replace(source.pinned, url=_absolute(source.pinned.url)) for source in self.sources)
        sources = tuple(replace(source, pinned=pinned) for source, pinned in zip(self.sources, placed, strict=True))
        return replace(self, sources=sources, target=_absolute(self.target))

    @cached_property
    def header(self) -> Header:
        """The header of the sum."""
        return Header.from_head(self.head)

    @cached_property
    def name(self) -> str:
        """What names this very sum: who is in it, with which bodies, and how it is cut."""
        return digest(self.head, self.tail, self.shards.to_bytes(8, "little")).hex()[:16]

    def frames(self, index: int) -> Iterator[Frame]:
        """Yield the frames of a range."""
        return islice(self.header.frames, self._first(index), self._first(index + 1))

    def frame_count(self, index: int) -> int:
        """Return the number of frames of a range, one at least."""
        return self._first(index + 1) - self._first(index)

    def part_url(self, index: int) -> str:
        """Return where the partial sum of a range lies: with head or tail, if it is the first or last range."""
        return f"{self.target}.{self.name}.{index:05}.part"

    def digests_url(self, index: int) -> str:
        """Return where the digests of the frames lie that are in a partial sum: it is whole if they are there."""
        return f"{self.target}.{self.name}.{index:05}.digests"

    def part_nbytes(self, index: int) -> int:
        """Return the size of a partial sum."""
        ends = (len(self.head) if index == 0 else 0) + (len(self.tail) if index + 1 == self.shards else 0)
        return self._frames_nbytes(index) + ends

    def read_nbytes(self, index: int) -> int:
        """Return how much is read of all updates for a range."""
        return self._frames_nbytes(index) * len(self.sources)

    def _frames_nbytes(self, index: int) -> int:
        return sum(frame.nbytes + DIGEST_NBYTES for frame in self.frames(index))

    def _first(self, index: int) -> int:
        return index * self.header.frame_count // self.shards


def _absolute(url: str) -> str:
    return url if is_url(url) else os.path.abspath(url)


@dataclass(frozen=True)
class RangeDone:
    """What a task returns.

    Parameters
    ----------
    index : int
        Of the range.
    digests : tuple of bytes
        Of each source, in order, the digests of all frames that were added, one after another; empty if a source was
        unfit, and no partial sum written.
    unfit : mapping of int to SecAggError
        What is wrong with sources, by their place.
    found : bool
        Whether the partial sum was there already: then no source was read, and the digests are what lay beside it.
    """

    index: int
    digests: tuple[bytes, ...]
    unfit: Mapping[int, SecAggError]
    found: bool = False


class Pool(Protocol):
    """Where the tasks of a sum run."""

    def run(self, job: SumJob, indices: Iterable[int]) -> Iterator[RangeDone]:
        """Yield what `secagg.shards.sum_range` returns of each range, as they end, in any order.

        Raises
        ------
        SecAggError
            What a task raised; or if there is nothing to run tasks on.
        """
