"""The calls of secagg.proto: who may make them, what they may cost, and how they end."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

import secagg
from secagg.errors import FormatError, MismatchError, SecAggError, TransportError
from secagg.protocol.chunks import chunks_from
from secagg.protocol.messages import BusyError
from secagg.server.events import MetricsHook
from secagg.server.federation import Federation
from secagg.server.members import Caller, Members
from secagg.server.turns import Stream, Streams
from secagg.wire.container import DIGEST_NBYTES
from secagg.wire.header import check_site

from . import secagg_pb2 as pb
from . import secagg_pb2_grpc as pb_grpc
from .messages import messages
from .refusals import Refusal

_UPLOADED = {"update": "an update", "model": "a model"}

log = logging.getLogger(__name__)


class Servicer(pb_grpc.SecureAggregationServicer):
    """Answers the calls of sites.

    Parameters
    ----------
    federation : Federation
        What they act on.
    members : Members
        Who may call.
    streams : Streams
        What they may cost.
    metrics : MetricsHook
        Is told of uploads, downloads and refusals.
    manifest : bytes
        The signed project manifest; empty if there is none.
    """

    def __init__(
        self,
        federation: Federation,
        members: Members,
        streams: Streams,
        metrics: MetricsHook,
        manifest: bytes = b"",
    ) -> None:
        self._federation = federation
        self._members = members
        self._streams = streams
        self._metrics = metrics
        self._manifest = manifest

    def Join(self, request: pb.JoinRequest, context: grpc.ServicerContext) -> pb.JoinReply:
        """Take the site into the roster."""
        with self.call(context) as caller:
            site = check_site(request.site)
            self._members.check_site(caller, site, f"site {site!r} joined")
            aggregation, key = self._federation.config.aggregation, self._federation.key
            round, base = self._federation.join(site)
            return pb.JoinReply(
                round=round,
                min_clients=aggregation.min_clients,
                max_clients=aggregation.max_clients,
                round_timeout=self._federation.round_timeout,
                key=key.fingerprint,
                epoch=key.epoch,
                project=self._manifest,
                base=base or b"",
            )

    def Resume(self, request: pb.Chunk, context: grpc.ServicerContext) -> pb.ResumeReply:
        """Say which frame of an update or model is wanted next."""
        with self.call(context) as caller, self._streams.watched(context) as stream:
            header, receipt = self._admit(request.data, caller)
            if receipt is not None:
                return pb.ResumeReply(already_added=True, receipt=receipt)
            with self._streams.only(header.site, header.kind, stream):
                receipt = self._federation.known(header)  # an earlier upload may have been added while this one waited
                if receipt is not None:
                    return pb.ResumeReply(already_added=True, receipt=receipt)
                with self._federation.part(header) as part:
                    return pb.ResumeReply(frame=part.frame)

    def Upload(self, request_iterator: Iterator[pb.Chunk], context: grpc.ServicerContext) -> pb.UploadReply:
        """Receive an update or model, and add or store it."""
        with self.call(context) as caller, self._streams.watched(context) as stream:
            messages = stream.incoming(request_iterator)
            first = next(messages, pb.Chunk())
            header, receipt = self._admit(first.data, caller)
            added = False
            if receipt is None:
                with self._streams.only(header.site, header.kind, stream), self._streams.slot(stream):
                    added, receipt = self._receive(header, first.frame, messages, stream)
            self._metrics.upload_received(header.nbytes, time.monotonic() - stream.began, added)
            return pb.UploadReply(already_added=not added, receipt=receipt)

    def Download(self, request: pb.DownloadRequest, context: grpc.ServicerContext) -> Iterator[pb.Chunk]:
        """Wait for the end of a round and send its aggregate, or send a stored model."""
        with self.call(context):
            container = self._find(request, context)
            with container, self._streams.watched(context) as stream:
                known = request.head == container.header.head[-DIGEST_NBYTES:]
                frame = min(request.frame, container.header.frame_count) if known else 0
                yield from stream.outgoing(messages(chunks_from(container, frame), frame))
                self._metrics.aggregate_downloaded(container.nbytes)

    def Status(self, request: pb.StatusRequest, context: grpc.ServicerContext) -> pb.StatusReply:
        """Say how the round and the server stand."""
        with self.call(context):
            status = self._federation.status(self._streams.uploads)
            return pb.StatusReply(
                round=status.round,
                attempt=status.attempt,
                state=status.state,
                added=status.added,
                waiting_for=status.waiting_for,
                seconds_left=status.seconds_left,
                aggregates=status.aggregates,
                models=status.models,
                epoch=status.epoch,
                time=time.time(),
                disk_used=status.disk_used,
                disk_quota=status.disk_quota,
                uploads_in_flight=status.uploads_in_flight,
                base=status.base or b"",
                project_serial=status.project_serial,
                disk_free=status.disk_free,
                trouble=status.trouble,
            )

    def _admit(self, head: bytes, caller: Caller) -> tuple[secagg.Header, bytes | None]:
        self._federation.check_head(len(head))
        header = secagg.Header.from_head(head)
        if header.kind not in _UPLOADED:
            raise MismatchError(f"this is an {header.kind}; upload an update or a model")
        self._members.check_site(caller, header.site, f"{_UPLOADED[header.kind]} of site {header.site!r} came")
        return header, self._federation.admit(header)

    def _receive(
        self, header: secagg.Header, frame: int, messages: Iterator[pb.Chunk], stream: Stream
    ) -> tuple[bool, bytes]:
        receipt = self._federation.known(header)  # an earlier upload may have been added while this one waited
        if receipt is not None:
            return False, receipt
        with self._federation.part(header) as part:
            if frame > part.frame:
                raise BusyError(f"the server wants frame {part.frame} next, not {frame}: ask it again")
            part.receive(frame, (message.data for message in messages), lambda: self._federation.check_open(header))
            return self._federation.take(part, time.monotonic() - stream.began)

    def _find(self, request: pb.DownloadRequest, context: grpc.ServicerContext) -> secagg.Update:
        if request.kind == "model":
            return self._federation.model(request.round if request.HasField("round") else None)
        if request.kind not in ("", "aggregate"):
            raise FormatError(f"kind {request.kind!r:.80} cannot be downloaded; ask for an aggregate or a model")
        aggregate = self._federation.wait(request.round, request.nonce, context.is_active)
        if aggregate is None:
            raise BusyError("the server is stopping")
        return aggregate

    @contextmanager
    def call(self, context: grpc.ServicerContext) -> Iterator[Caller]:
        """Let a call in if its caller may make it; end it with a typed error whatever goes wrong inside.

        Nothing of a native exception gets out. What says nothing about the request, because there is no turn for it
        now, ends without a typed error, and the other side tries again.
        """
        # The error itself is not kept: with its traceback, which holds this frame, it would go round in a circle, and
        # hold the call, whose stream counts as open for as long, until Python looks for such circles.
        caller, refusal, busy = Caller(None), None, ""
        try:
            caller = self._members.caller(context.auth_context())  # type: ignore[arg-type]  # the stubs are wrong
            with self._members.counted(caller) as allowed:
                if not allowed:
                    raise BusyError(f"{caller.name!r} has too many calls under way")
                yield caller
                return
        except BusyError as error:
            busy = str(error)
        except SecAggError as error:
            refusal = Refusal.of(error)
            extra = {"event": "refused", "site": caller.name, "error": refusal.kind}
            log.warning("refused %s: %s: %s", _who(context, caller), refusal.kind, refusal.message, extra=extra)
        except grpc.RpcError:
            log.info("%s broke off", _who(context, caller), extra={"event": "broken_off", "site": caller.name})
            raise
        except Exception as error:
            refusal = Refusal.of(TransportError("the server failed; its log says why"))
            extra = {"event": "failed", "site": caller.name, "error": type(error).__name__}
            log.exception("a call of %s failed", _who(context, caller), extra=extra)
        if refusal is None:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, busy)
        self._metrics.refused(refusal.kind)
        refusal.abort(context)


def _who(context: grpc.ServicerContext, caller: Caller) -> str:
    return f"{caller.name} at {context.peer()}" if caller.name else str(context.peer())
