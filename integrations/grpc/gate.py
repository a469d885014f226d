"""What happens before a call's only message has come.

gRPC waits for the message of a unary call in a thread of the pool, before anybody asks who calls: as many callers that
send nothing as there are threads would stop a server. So the calls of all services are taken as streams, which look
the same on the wire; who calls is checked first, and the message is waited for under the limits of a stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc

from secagg.errors import FormatError
from secagg.server.turns import Streams

from .servicer import Servicer


class Gate(grpc.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Lets a call in once its caller is known and its message is there.

    Parameters
    ----------
    servicer : Servicer
        Knows who may call.
    streams : Streams
        Watches the stream meanwhile.
    """

    def __init__(self, servicer: Servicer, streams: Streams) -> None:
        self._servicer = servicer
        self._streams = streams

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """See `grpc.ServerInterceptor`."""
        handler = continuation(handler_call_details)
        if handler is None or handler.request_streaming:
            return handler
        answer = handler.unary_stream if handler.response_streaming else handler.unary_unary
        if getattr(answer, "experimental_non_blocking", False):
            return None  # to watch a server's health would take a thread for as long as one likes
        as_stream = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )

        def take(messages: Iterator[Any], context: grpc.ServicerContext) -> Any:
            return answer(self._message(messages, context), context)

        return as_stream(take, handler.request_deserializer, handler.response_serializer)

    def _message(self, messages: Iterator[Any], context: grpc.ServicerContext) -> Any:
        with self._servicer.call(context), self._streams.watched(context) as stream:
            for message in stream.incoming(messages):
                return message
            raise FormatError("the call has no message")
