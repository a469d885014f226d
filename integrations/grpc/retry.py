"""Calls that are tried again until they succeed, are refused, or have taken too long."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

import grpc

from secagg.protocol.handshake import check_handshake
from secagg.trust import Tls

from .refusals import error_of, transport_error

T = TypeVar("T")

#: What says nothing about the request if the server gave no typed error with it: it is not up, is stopping or busy,
#: has ended this call for a newer one of the same site, or the connection broke.
_RETRIED = frozenset(
    (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,  # the server's, perhaps; the own one leaves no time to try again
    )
)
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0


def persist(
    what: str,
    call: Callable[[float], T],
    seconds: float,
    address: str,
    tls: Tls | None,
    progress: Callable[[], int] = lambda: 0,
) -> T:
    """Return what `call` returns; try again, with growing pauses, while that may help.

    Parameters
    ----------
    what : str
        What is done, for the error's message.
    call : callable
        Takes the seconds that are left, and raises `grpc.RpcError`. It is called several times, perhaps.
    seconds : float
        How long all of it may take.
    address, tls : str, Tls or None
        The server and the own certificate: a refused certificate is told at once.
    progress : callable
        Returns how far the calls have come; when that has changed, the pauses begin anew.

    Raises
    ------
    SecAggError
        The typed error with which the server refused the call.
    IdentityError
        If one side does not accept the other's certificate.
    TransportError
        If the call did not succeed in time.
    """
    deadline = time.monotonic() + seconds
    pause, before = _FIRST_PAUSE_SECONDS, progress()
    while True:
        started = time.monotonic()
        try:
            return call(deadline - started)
        except grpc.RpcError as error:
            refusal = error_of(error)
            if refusal is not None:
                raise refusal from None
            if tls is not None and error.code() is grpc.StatusCode.UNAVAILABLE:
                check_handshake(address, tls)
            now, before, earlier = time.monotonic(), progress(), before
            if before != earlier or now - started > _LONGEST_PAUSE_SECONDS:
                pause = _FIRST_PAUSE_SECONDS  # a bad connection, no server that is away
            # Sites that were cut off together do not come back together.
            wait = pause * random.uniform(0.5, 1.0)
            if error.code() not in _RETRIED or now + wait >= deadline:
                raise transport_error(error, what) from None
        time.sleep(wait)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
