"""What happens before a call's only message has come.

gRPC waits for the message of a unary call in a thread of the pool, before anybody asks who calls: as many callers that
send nothing as there are threads would stop a server. So the calls of all services are taken as streams, which look
the same on the wire; who calls is checked first, and the message is waited for under the limits of a stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc

from .servicer import Servicer, coming


class Gate(grpc.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Lets a call in once its caller is known and its message is there.

    Parameters
    ----------
    servicer : Servicer
        Knows who may call.
    """

    def __init__(self, servicer: Servicer) -> None:
        self._servicer = servicer

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
            with self._servicer.call(context) as call:
                message = call.message(coming(messages))
            return answer(message, context)

        return as_stream(take, handler.request_deserializer, handler.response_serializer)
