"""The way of an upload: from its head, by its turn and its place on the disk, into the sum or among the models."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import secagg

from ..errors import MismatchError, StateError, TransportError
from ..protocol.messages import BusyError, Chunk, DepositReply, UploadReply
from .bucket import Bucket
from .events import Events
from .members import Caller, Members
from .models import ModelStore
from .open_round import OpenRound
from .spool import Spool
from .turns import Stream, Turns

log = logging.getLogger(__name__)

_UPLOADED = {"update": "an update", "calibration": "a calibration", "model": "a model"}


class Uploads:
    """Takes updates, calibrations and models of sites.

    Parameters
    ----------
    members : Members
        Knows under which name a caller may speak.
    turns : Turns
        One upload of a kind a site, so many at a time.
    spool : Spool
        Where they lie until they are whole.
    open_round : OpenRound
        Where updates and calibrations go.
    models : ModelStore
        Where models go.
    events : Events
        Is told of uploads that ended well.
    bucket : Bucket, optional
        Where updates may be put in place of being sent.
    """

    def __init__(
        self,
        members: Members,
        turns: Turns,
        spool: Spool,
        open_round: OpenRound,
        models: ModelStore,
        events: Events,
        bucket: Bucket | None = None,
    ) -> None:
        self._members = members
        self._turns = turns
        self._spool = spool
        self._round = open_round
        self._models = models
        self._events = events
        self._bucket = bucket

    def resume(self, caller: Caller, head: bytes, stream: Stream) -> UploadReply:
        """Say which frame of an update, calibration or model is wanted next, or that it is there already.

        Raises
        ------
        SecAggError
            Whatever makes it unfit; nothing was added.
        BusyError
            If it is not its turn.
        """
        with _bucket_errors():
            return self._resume(self._read(caller, head), stream)

    def _resume(self, header: secagg.Header, stream: Stream) -> UploadReply:
        receipt = self._admit(header)
        if receipt is not None:
            return UploadReply(already_added=True, receipt=receipt)
        with self._turns.only(header.site, header.kind, stream):
            receipt = self._known(header)
            if receipt is not None:
                return UploadReply(already_added=True, receipt=receipt)
            with self._spool.part(header, layout_known=self._round.layout_known) as part:
                return UploadReply(already_added=False, frame=part.frame)

    def receive(self, caller: Caller, chunks: Iterator[Chunk], stream: Stream) -> UploadReply:
        """Receive an update, calibration or model, and add or store it; errors as of `resume`."""
        first = next(chunks, Chunk(b""))
        header = self._read(caller, bytes(first.data))
        with _bucket_errors():
            receipt, added = self._admit(header), False
            if receipt is None:
                with self._turns.only(header.site, header.kind, stream), self._turns.slot(stream):
                    added, receipt = self._receive(header, first.frame, chunks, stream)
        self._events.upload_received(header.nbytes, time.monotonic() - stream.began, added)
        return UploadReply(already_added=not added, receipt=receipt)

    def deposit(self, caller: Caller, head: bytes, stream: Stream) -> DepositReply:
        """Say which parts of an update are missing in the bucket, or verify and add it; errors as of `resume`."""
        if self._bucket is None:
            raise StateError("this server has no bucket: upload the update to it")
        header = self._read(caller, head)
        if header.kind != "update":
            raise MismatchError(f"a {header.kind} does not go by the bucket: upload it to the server")
        with _bucket_errors():
            return self._deposit(self._bucket, header, stream)

    def _deposit(self, bucket: Bucket, header: secagg.Header, stream: Stream) -> DepositReply:
        receipt = self._admit(header)
        if receipt is not None:
            return DepositReply(already_added=True, receipt=receipt)
        with self._turns.only(header.site, header.kind, stream):
            receipt = self._known(header)
            if receipt is not None:
                return DepositReply(already_added=True, receipt=receipt)
            with bucket.deposit(header, layout_known=self._round.layout_known) as deposit:
                missing = deposit.missing()
                if missing:
                    return DepositReply(parts=missing)
                with self._turns.slot(stream):
                    seconds = deposit.seconds
                    deposit.complete()
                    added, receipt = self._round.add(deposit, seconds)
        self._events.upload_received(header.nbytes, seconds, added)
        return DepositReply(already_added=not added, receipt=receipt, done=added)

    def _read(self, caller: Caller, head: bytes) -> secagg.Header:
        """Return the header of what a caller may upload."""
        self._round.check_head(len(head))
        header = secagg.Header.from_head(head)
        if header.kind not in _UPLOADED:
            raise MismatchError(f"{header.kind} cannot be uploaded; upload {', '.join(_UPLOADED.values())}")
        self._members.check_site(caller, header.site, f"{_UPLOADED[header.kind]} of site {header.site!r} came")
        return header

    def _admit(self, header: secagg.Header) -> bytes | None:
        """Return None if it is wanted; if it is there already, its receipt, empty for what is no update.

        It is asked before the turn: what is unfit must not break off an earlier upload of its site.
        """
        if header.kind != "model":
            return self._round.admit(header)
        wanted = self._models.wants(header, *self._round.bases())
        self._round.check_model(header)
        return None if wanted else b""

    def _known(self, header: secagg.Header) -> bytes | None:
        """Return the receipt of what an earlier upload has added to the sum while this one waited for its turn."""
        return None if header.kind == "model" else self._round.known(header)

    def _receive(
        self, header: secagg.Header, frame: int, chunks: Iterator[Chunk], stream: Stream
    ) -> tuple[bool, bytes]:
        receipt = self._known(header)
        if receipt is not None:
            return False, receipt
        with self._spool.part(header, layout_known=self._round.layout_known) as part:
            if frame > part.frame:
                raise BusyError(f"the server wants frame {part.frame} next, not {frame}: ask it again")
            summed = header.kind != "model"
            check = (lambda: self._round.check_open(header)) if summed else (lambda: None)
            part.receive(frame, (bytes(chunk.data) for chunk in chunks), check)
            if summed:
                return self._round.add(part, time.monotonic() - stream.began)
            added = self._models.keep(part.path, header)
            self._spool.sweep("model", since=header.round + 1)
            return added, b""


@contextmanager
def _bucket_errors() -> Iterator[None]:
    """Let whoever calls come again while the bucket cannot be reached; the log says why."""
    try:
        yield
    except TransportError as error:
        if type(error) is not TransportError:
            raise
        log.error("%s", error, extra={"event": "bucket_away", "error": type(error).__name__})
        raise BusyError("the server cannot reach its bucket: try again") from None
