"""How the typed errors of secagg travel over gRPC.

A refused call ends with the status code below, the error's message as details, and the name of its type in the
trailing metadata, so that the other side raises the same type.
"""

from __future__ import annotations

from typing import NoReturn

import grpc

from secagg import errors
from secagg.errors import SecAggError
from secagg.protocol import Refusal, shown

ERROR_KEY = "secagg-error"

#: Most specific type first. A code tells generic tools what happened; the type is what secagg acts on.
_CODES = (
    (errors.IdentityError, grpc.StatusCode.PERMISSION_DENIED),
    (errors.SignatureError, grpc.StatusCode.PERMISSION_DENIED),
    (errors.TransportError, grpc.StatusCode.INTERNAL),
    (errors.DigestError, grpc.StatusCode.DATA_LOSS),
    (errors.FormatError, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.DuplicateError, grpc.StatusCode.ALREADY_EXISTS),
    (errors.CapacityError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.QuotaError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.StorageError, grpc.StatusCode.INTERNAL),
    (errors.QuorumError, grpc.StatusCode.ABORTED),
    (errors.SecAggError, grpc.StatusCode.FAILED_PRECONDITION),
)


def abort(context: grpc.ServicerContext, refusal: Refusal) -> NoReturn:
    """End the call of `context` with a typed error."""
    kind = getattr(errors, refusal.kind)
    context.set_trailing_metadata(((ERROR_KEY, refusal.kind),))
    context.abort(next(code for base, code in _CODES if issubclass(kind, base)), refusal.message)


def error_of(call: grpc.RpcError) -> SecAggError | None:
    """Return the typed error that ended `call` on the server; None if the server did not say one."""
    for item in call.trailing_metadata() or ():
        if item.key == ERROR_KEY:
            return Refusal(str(item.value), str(call.details() or "")).error()
    return None


def details(call: grpc.RpcError) -> str:
    """Return what gRPC says of a `call` that failed on the way, without a typed error of the server."""
    return f"{shown(call.details() or '') or 'no details'} ({call.code().name})"
