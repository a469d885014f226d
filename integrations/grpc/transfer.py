"""Sending an update or model to the server, and fetching an aggregate or model: one try of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import grpc

import secagg
from secagg.errors import FormatError, RoundMismatchError, SecAggError, StorageError
from secagg.protocol.chunks import Outgoing, Progress, receive
from secagg.protocol.part import whole_frames
from secagg.wire.container import DIGEST_NBYTES

from . import secagg_pb2 as pb
from . import secagg_pb2_grpc as pb_grpc
from .messages import messages
from .refusals import error_of

#: Called with the header of what is downloaded.
Check = Callable[[secagg.Header], None]


class Sender:
    """Sends an update or model; each call is one try, and goes on where the one before broke off.

    Parameters
    ----------
    stub : SecureAggregationStub
        The server.
    update : secagg.Update
        Update or model.
    progress : callable, optional
        Called with the bytes that the server has and in all, in another thread.

    Attributes
    ----------
    frame : int
        First frame that the server did not have when the latest try began.
    """

    def __init__(
        self, stub: pb_grpc.SecureAggregationStub, update: secagg.Update, progress: Progress | None = None
    ) -> None:
        self.frame = 0
        self._stub = stub
        self._update = update
        self._progress = progress

    def __call__(self, seconds: float) -> tuple[bool, bytes]:
        """Send what the server does not have yet.

        Parameters
        ----------
        seconds : float
            How long it may take.

        Returns
        -------
        bool
            Whether the server had it all, added or stored.
        bytes
            The server's receipt; empty if it gave none.

        Raises
        ------
        grpc.RpcError
            If the server refuses it, or a call breaks off.
        FormatError
            If the server asks for a frame that there is not.
        Exception
            What `progress` raised, or reading the update.
        """
        deadline = time.monotonic() + seconds
        header = self._update.header
        stored = self._stub.Resume(pb.Chunk(data=header.head), timeout=seconds)
        if stored.already_added:
            return True, stored.receipt
        if stored.frame > header.frame_count:
            raise FormatError(f"the server asks for frame {stored.frame}, the {header.kind} has {header.frame_count}")
        self.frame = stored.frame
        with closing(Outgoing(self._update, self.frame, self._progress)) as outgoing:
            call = self._stub.Upload.future(messages(outgoing, self.frame), timeout=deadline - time.monotonic())
            try:
                reply = call.result()
            except grpc.RpcError:
                if outgoing.error is not None:
                    raise outgoing.error from None
                raise
            finally:
                call.cancel()
        return reply.already_added, reply.receipt


def fetch(
    stub: pb_grpc.SecureAggregationStub,
    request: pb.DownloadRequest,
    target: Path,
    seconds: float,
    check: Check,
    progress: Progress | None = None,
) -> None:
    """Fetch the aggregate or model that `request` names to the file `target`; it appears whole or not at all.

    What a try that broke off leaves beside the target, the next one goes on with.

    Parameters
    ----------
    stub : SecureAggregationStub
        The server.
    request : DownloadRequest
        Its kind is filled in.
    target : Path
        File to write.
    seconds : float
        How long it may take.
    check : callable
        Called with the header; what it raises ends the download before its frames.
    progress : callable, optional
        Called with the bytes that are there and in all.

    Raises
    ------
    grpc.RpcError
        If the server refuses it, or the call breaks off.
    FormatError, RoundMismatchError
        If the server sends something else.
    StorageError
        If the file cannot be written.
    """
    part = target.with_name(f".{target.name}.part")
    try:
        _fetch(stub, request, part, seconds, check, progress)
        os.replace(part, target)
    except (grpc.RpcError, SecAggError, OSError) as error:
        if not isinstance(error, grpc.RpcError) or error_of(error) is not None:  # it did not just break off
            part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise StorageError(f"cannot write {str(target)!r}: {error.strerror or error}") from error
        raise


def _fetch(
    stub: pb_grpc.SecureAggregationStub,
    request: pb.DownloadRequest,
    part: Path,
    seconds: float,
    check: Check,
    progress: Progress | None,
) -> None:
    request.head, request.frame = _left(part)
    call = stub.Download(request, timeout=seconds)
    try:
        first = next(call, pb.Chunk())
        header = secagg.Header.from_head(first.data)
        if header.kind != request.kind:
            raise FormatError(f"the server sent kind {header.kind!r} where {request.kind!r} was asked for")
        if request.HasField("round") and header.round != request.round:
            raise RoundMismatchError(f"the server sent the {header.kind} of round {header.round}, not {request.round}")
        check(header)
        if first.frame and (first.frame, header.head[-DIGEST_NBYTES:]) != (request.frame, request.head):
            raise FormatError(f"the server sent frame {first.frame} on, which was not asked for")
        with open(part, "r+b" if first.frame else "wb", opener=_private) as file:
            if not first.frame:
                file.write(header.head)
            receive(file, header, first.frame, (message.data for message in call), progress)
    finally:
        call.cancel()


def _left(part: Path) -> tuple[bytes, int]:
    """Return of what a broken download has left: the digest of its head, and how many frames are whole."""
    try:
        with secagg.Update.open(part) as update:
            return update.header.head[-DIGEST_NBYTES:], whole_frames(update)
    except SecAggError:  # nothing of use
        return b"", 0


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
