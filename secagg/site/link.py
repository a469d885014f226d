"""The calls of a site at its server, which a transport carries."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Protocol

from ..protocol.messages import (
    Chunk,
    DepositReply,
    DownloadRequest,
    JoinReply,
    ServerStatus,
    SkipRequest,
    UploadReply,
)


class Link(Protocol):
    """A connection to the server. Each call is one try, of `seconds` at most; `secagg.site.Session` tries again.

    A call raises the `secagg.errors.SecAggError` with which the server has refused it, `secagg.protocol.BusyError` if
    that says nothing about it and it may be tried again (the server is away or busy, the connection broke), and
    another `SecAggError` if there is no use in that.
    """

    def join(self, site: str, seconds: float) -> JoinReply:
        """Take the site into the roster of the open round."""

    def skip(self, request: SkipRequest, seconds: float) -> None:
        """Say that the site gives nothing to a round."""

    def resume(self, head: bytes, seconds: float) -> UploadReply:
        """Ask which frame of the update or model of this head the server wants next."""

    def upload(self, chunks: Iterator[Chunk], seconds: float) -> UploadReply:
        """Send an update or model from some frame on; what `chunks` raises is raised."""

    def deposit(self, head: bytes, seconds: float) -> DepositReply:
        """Ask where the missing parts of the update of this head go, or have it added; only if `join` said so."""

    def download(self, request: DownloadRequest, seconds: float) -> Generator[Chunk, None, None]:
        """Yield an aggregate or model; to close the generator breaks the call off."""

    def status(self, seconds: float) -> ServerStatus:
        """Ask how the round and the server stand."""

    def close(self) -> None:
        """Close the connection."""
