"""Which object is meant, and what a store of objects does; `secagg.storage.objects` is what others call."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from ..errors import one_line
from .files import Writable

#: Bytes that are read or written at a time: a request to a store costs as much as some of these.
WINDOW_NBYTES = 8 << 20


@dataclass(frozen=True)
class Pinned:
    """An object that was seen: another one that takes its place is refused, and not read.

    Parameters
    ----------
    url : str
        Where it lies.
    nbytes : int
        Its size.
    version : str
        Of stores that keep versions, which one; else empty.
    etag : str
        What the store names this content by, or of a file inode and time; empty where there is no such thing.
    """

    url: str
    nbytes: int
    version: str = ""
    etag: str = ""


class Store(Protocol):
    """Where objects of one scheme lie. Errors are those of the functions of `secagg.storage.objects`."""

    def pin(self, url: str) -> Pinned:
        """Find an object."""

    def read(self, pinned: Pinned, offset: int, nbytes: int) -> bytes:
        """Return bytes of an object."""

    def write(self, url: str) -> AbstractContextManager[Writable]:
        """Open an object for writing."""

    def list(self, pattern: str) -> list[str]:
        """Return what a pattern stands for."""

    def remove(self, url: str) -> None:
        """Remove an object, if it is there."""

    def concatenate(self, parts: Sequence[Pinned], url: str) -> None:
        """Make one object of several."""


def copy_into(store: Store, parts: Sequence[Pinned], target: Writable) -> None:
    """Write objects one after another to a stream, a window at a time."""
    for part in parts:
        for offset in range(0, part.nbytes, WINDOW_NBYTES):
            target.write(store.read(part, offset, min(WINDOW_NBYTES, part.nbytes - offset)))


def shown(url: str) -> str:
    """Return a path or a URL for a message: what follows ``?`` may be a signature, what precedes ``@`` a password."""
    scheme, separator, place = url.partition("://")
    if not separator:
        return one_line(url)
    host, slash, key = place.partition("?")[0].partition("/")
    return one_line(f"{scheme}://{host.rpartition('@')[2]}{slash}{key}")
