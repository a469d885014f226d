"""The messages of secagg.proto, to and from those of `secagg.protocol`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from secagg.protocol import (
    Chunk,
    DepositReply,
    DownloadRequest,
    JoinReply,
    PartTarget,
    ServerStatus,
    UploadReply,
)

from . import secagg_pb2 as pb

#: Of a gRPC message: the largest head, 4 MiB of header, fits.
MAX_MESSAGE_NBYTES = 5 << 20


def pack_chunks(chunks: Iterable[Chunk]) -> Iterator[pb.Chunk]:
    """Yield the messages of a stream."""
    for chunk in chunks:
        yield pb.Chunk(data=bytes(chunk.data), frame=chunk.frame)


def unpack_chunks(messages: Iterable[pb.Chunk]) -> Iterator[Chunk]:
    """Yield the chunks of a stream."""
    for message in messages:
        yield Chunk(message.data, message.frame)


def pack_join(reply: JoinReply) -> pb.JoinReply:
    """Return what a site that joins is answered."""
    return pb.JoinReply(
        round=reply.round,
        min_clients=reply.min_clients,
        max_clients=reply.max_clients,
        round_timeout=reply.round_timeout,
        key=reply.key,
        epoch=reply.epoch,
        project=reply.project,
        base=reply.base or b"",
        deposits=reply.deposits,
    )


def unpack_join(message: pb.JoinReply) -> JoinReply:
    """Return the inverse of `pack_join`."""
    return JoinReply(
        round=message.round,
        min_clients=message.min_clients,
        max_clients=message.max_clients,
        round_timeout=message.round_timeout,
        key=message.key,
        epoch=message.epoch,
        project=message.project,
        base=message.base or None,
        deposits=message.deposits,
    )


def unpack_resume(message: pb.ResumeReply) -> UploadReply:
    """Return what a server answers to a head."""
    return UploadReply(message.already_added, message.receipt, message.frame)


def unpack_upload(message: pb.UploadReply) -> UploadReply:
    """Return what a server answers to an upload."""
    return UploadReply(message.already_added, message.receipt)


def pack_deposit(reply: DepositReply) -> pb.DepositReply:
    """Return what a server answers to the head of what comes by its bucket."""
    parts = (
        pb.PartTarget(number=part.number, offset=part.offset, nbytes=part.nbytes, url=part.url) for part in reply.parts
    )
    return pb.DepositReply(already_added=reply.already_added, receipt=reply.receipt, done=reply.done, parts=parts)


def unpack_deposit(message: pb.DepositReply) -> DepositReply:
    """Return the inverse of `pack_deposit`."""
    parts = tuple(PartTarget(part.number, part.offset, part.nbytes, part.url) for part in message.parts)
    return DepositReply(message.already_added, message.receipt, message.done, parts)


def pack_request(request: DownloadRequest) -> pb.DownloadRequest:
    """Return what a site asks for."""
    return pb.DownloadRequest(
        round=request.round, nonce=request.nonce, kind=request.kind, frame=request.frame, head=request.head
    )


def unpack_request(message: pb.DownloadRequest) -> DownloadRequest:
    """Return the inverse of `pack_request`; of aggregate and scales round 0 is meant if none is named."""
    kind = message.kind or "aggregate"
    round = message.round if message.HasField("round") or kind != "model" else None
    return DownloadRequest(kind, round, message.nonce, message.head, message.frame)


def pack_status(status: ServerStatus) -> pb.StatusReply:
    """Return how a server stands."""
    return pb.StatusReply(
        round=status.round,
        attempt=status.attempt,
        state=status.state,
        added=status.added,
        skipped=status.skipped,
        waiting_for=status.waiting_for,
        seconds_left=status.seconds_left,
        aggregates=status.aggregates,
        models=status.models,
        epoch=status.epoch,
        time=status.time,
        disk_used=status.disk_used,
        disk_quota=status.disk_quota,
        uploads_in_flight=status.uploads_in_flight,
        base=status.base or b"",
        project_serial=status.project_serial,
        disk_free=status.disk_free,
        trouble=status.trouble,
        stage=status.stage,
    )


def unpack_status(message: pb.StatusReply) -> ServerStatus:
    """Return the inverse of `pack_status`."""
    return ServerStatus(
        round=message.round,
        attempt=message.attempt,
        state=message.state,
        added=tuple(message.added),
        skipped=tuple(message.skipped),
        waiting_for=tuple(message.waiting_for),
        seconds_left=message.seconds_left if message.HasField("seconds_left") else None,
        uploads_in_flight=message.uploads_in_flight,
        disk_used=message.disk_used,
        disk_quota=message.disk_quota,
        epoch=message.epoch,
        models=tuple(message.models),
        aggregates=tuple(message.aggregates),
        base=message.base or None,
        project_serial=message.project_serial,
        disk_free=message.disk_free if message.HasField("disk_free") else None,
        trouble=message.trouble,
        time=message.time,
        stage=message.stage,
    )
