"""What a party that was let in may ask of a server: the calls of every transport."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import secagg

from ..errors import FormatError
from ..protocol.chunks import chunks_from
from ..protocol.messages import (
    BrokenOffError,
    BusyError,
    Chunk,
    DepositReply,
    DownloadRequest,
    JoinReply,
    ServerStatus,
    SkipRequest,
    UploadReply,
)
from ..wire.container import DIGEST_NBYTES
from ..wire.header import check_site
from .events import Events
from .members import Caller, Members
from .models import ModelStore
from .open_round import OpenRound
from .turns import Connection, Turns
from .uploads import Uploads

T = TypeVar("T")


@dataclass(frozen=True)
class Desk:
    """What calls act on.

    Parameters
    ----------
    members, turns, uploads, open_round, models, events
        The parts of a federation.
    terms : callable
        Returns what a site that joins is told, given the round, its base and its manifest.
    status : callable
        Returns how the server stands.
    """

    members: Members
    turns: Turns
    uploads: Uploads
    open_round: OpenRound
    models: ModelStore
    events: Events
    terms: Callable[[int, bytes | None, secagg.Project | None], JoinReply]
    status: Callable[[], ServerStatus]


class Call:
    """One call of one party. A transport gets it from `secagg.server.Federation.call` and makes one request by it.

    Every request raises `SecAggError` if it is refused, and `BusyError` if it may come again.

    Parameters
    ----------
    desk : Desk
        What it acts on.
    caller : Caller
        Who calls.
    connection : Connection
        Says whether the other side still waits.
    """

    def __init__(self, desk: Desk, caller: Caller, connection: Connection) -> None:
        self._desk = desk
        self._caller = caller
        self._connection = connection

    def message(self, messages: Iterable[T]) -> T:
        """Wait for the only message of a call, under the limits of a stream.

        Raises
        ------
        FormatError
            If there is none.
        """
        with self._desk.turns.watched(self._connection) as stream:
            for message in stream.incoming(messages):
                return message
        raise FormatError("the call has no message")

    def join(self, site: str) -> JoinReply:
        """Take a site into the roster: the round waits for what it gives until the round timeout."""
        site = check_site(site)
        self._desk.members.check_site(self._caller, site, f"site {site!r} joined")
        return self._desk.terms(*self._desk.open_round.join(site))

    def skip(self, request: SkipRequest) -> None:
        """Wait no longer for a site that gives nothing to a round: it speaks for itself only."""
        site = check_site(request.site)
        self._desk.members.check_site(self._caller, site, f"site {site!r} skips a round")
        self._desk.open_round.skip(site, request.round)

    def resume(self, head: bytes) -> UploadReply:
        """Say which frame of what has this head is wanted next; see `Uploads.resume`."""
        with self._desk.turns.watched(self._connection) as stream:
            return self._desk.uploads.resume(self._caller, head, stream)

    def upload(self, chunks: Iterable[Chunk]) -> UploadReply:
        """Receive an update, calibration or model, and add or store it: all or nothing; see `Uploads.receive`."""
        with self._desk.turns.watched(self._connection) as stream:
            return self._desk.uploads.receive(self._caller, _coming(stream.incoming(chunks)), stream)

    def deposit(self, head: bytes) -> DepositReply:
        """Say where the missing parts of an update go, or add it once it is in the bucket; see `Uploads.deposit`."""
        with self._desk.turns.watched(self._connection) as stream:
            return self._desk.uploads.deposit(self._caller, head, stream)

    def download(self, request: DownloadRequest) -> Iterator[Chunk]:
        """Wait for aggregate or scales of a round and yield them, or yield a stored model; take all within the call."""
        desk = self._desk
        with self._find(request) as found, desk.turns.watched(self._connection) as stream:
            known = request.head == found.header.head[-DIGEST_NBYTES:]
            frame = min(request.frame, found.header.frame_count) if known else 0
            yield from stream.outgoing(chunks_from(found, frame))
            desk.events.aggregate_downloaded(found.nbytes)

    def status(self) -> ServerStatus:
        """Say how the round and the server stand. Changes nothing."""
        return self._desk.status()

    def _find(self, request: DownloadRequest) -> secagg.Update:
        if request.kind == "model":
            return self._desk.models.open(request.round)
        if request.kind not in ("aggregate", "scales"):
            raise FormatError(f"kind {request.kind!r:.80} cannot be downloaded; ask for aggregate, scales or model")
        if request.round is None:
            raise FormatError(f"kind {request.kind!r} is that of a round: name it")
        summed = self._desk.open_round.wait(request.kind, request.round, request.nonce, self._connection.is_active)
        if summed is None:
            raise BusyError("the server is stopping")
        return summed


def _coming(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """Yield chunks; an `OSError` is the transport's here, and must not be taken for one of the disk."""
    try:
        yield from chunks
    except OSError:
        raise BrokenOffError from None
