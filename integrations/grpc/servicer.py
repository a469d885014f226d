"""The calls of secagg.proto: messages in, messages out, and typed errors as gRPC carries them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import grpc

from secagg.errors import SecAggError
from secagg.protocol import BrokenOffError, BusyError, Refusal, SkipRequest
from secagg.server import Call, Federation

from . import secagg_pb2 as pb
from . import secagg_pb2_grpc as pb_grpc
from .messages import pack_chunks, pack_deposit, pack_join, pack_status, unpack_chunks, unpack_request
from .refusals import abort

T = TypeVar("T")


class Servicer(pb_grpc.SecureAggregationServicer):
    """Answers the calls of sites.

    Parameters
    ----------
    federation : Federation
        What they act on.
    """

    def __init__(self, federation: Federation) -> None:
        self._federation = federation

    def Join(self, request: pb.JoinRequest, context: grpc.ServicerContext) -> pb.JoinReply:
        """Take the site into the roster."""
        with self.call(context) as call:
            return pack_join(call.join(request.site))

    def Skip(self, request: pb.SkipRequest, context: grpc.ServicerContext) -> pb.SkipReply:
        """Wait no longer for a site that gives nothing to a round."""
        with self.call(context) as call:
            call.skip(SkipRequest(request.site, request.round))
            return pb.SkipReply()

    def Resume(self, request: pb.Chunk, context: grpc.ServicerContext) -> pb.ResumeReply:
        """Say which frame of an upload is wanted next."""
        with self.call(context) as call:
            reply = call.resume(request.data)
            return pb.ResumeReply(already_added=reply.already_added, frame=reply.frame, receipt=reply.receipt)

    def Upload(self, request_iterator: Iterator[pb.Chunk], context: grpc.ServicerContext) -> pb.UploadReply:
        """Receive an update, calibration or model, and add or store it."""
        with self.call(context) as call:
            reply = call.upload(unpack_chunks(coming(request_iterator)))
            return pb.UploadReply(already_added=reply.already_added, receipt=reply.receipt)

    def Deposit(self, request: pb.Chunk, context: grpc.ServicerContext) -> pb.DepositReply:
        """Say where the missing parts of an update go, or add it once it lies in the bucket whole."""
        with self.call(context) as call:
            return pack_deposit(call.deposit(request.data))

    def Download(self, request: pb.DownloadRequest, context: grpc.ServicerContext) -> Iterator[pb.Chunk]:
        """Wait for aggregate or scales of a round and send them, or send a stored model."""
        with self.call(context) as call:
            yield from pack_chunks(call.download(unpack_request(request)))

    def Status(self, request: pb.StatusRequest, context: grpc.ServicerContext) -> pb.StatusReply:
        """Say how the round and the server stand."""
        with self.call(context) as call:
            return pack_status(call.status())

    @contextmanager
    def call(self, context: grpc.ServicerContext) -> Iterator[Call]:
        """Let a call in, and end it with a typed error if anything goes wrong inside.

        What says nothing about the request, because there is no turn for it now, ends without a typed error, and the
        other side tries again.
        """
        # The error itself is not kept: with its traceback, which holds this frame, it would go round in a circle, and
        # hold the call, whose stream counts as open for as long, until Python looks for such circles.
        refusal, busy = None, ""
        try:
            certificates = tuple(context.auth_context().get("x509_pem_cert", ()))
            with self._federation.call(certificates, context, str(context.peer())) as call:  # type: ignore[arg-type]
                yield call
                return
        except BusyError as error:
            busy = str(error)
        except BrokenOffError:
            busy = "the call broke off"
        except SecAggError as error:
            refusal = Refusal.of(error)
        if refusal is None:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, busy)
        abort(context, refusal)


def coming(messages: Iterable[T]) -> Iterator[T]:
    """Yield the messages of a site; `BrokenOffError` if it has gone."""
    try:
        yield from messages
    except grpc.RpcError:
        raise BrokenOffError from None
