"""How the typed errors of secagg travel over gRPC.

A refused call ends with the status code below, the error's message as details, and the name of its type in the
trailing metadata, so that the other side raises the same type; beside it the serial of the server's manifest, if that
is what it was refused for.
"""

from __future__ import annotations

from typing import NoReturn

import grpc

from secagg import errors
from secagg.errors import SecAggError
from secagg.protocol import Refusal, shown

ERROR_KEY = "secagg-error"
MANIFEST_KEY = "secagg-manifest"

#: Of a serial.
_MAX_DIGITS = 18

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
    manifest = () if refusal.manifest is None else ((MANIFEST_KEY, str(refusal.manifest)),)
    context.set_trailing_metadata(((ERROR_KEY, refusal.kind), *manifest))
    context.abort(next(code for base, code in _CODES if issubclass(kind, base)), refusal.message)


def error_of(call: grpc.RpcError) -> SecAggError | None:
    """Return the typed error that ended `call` on the server; None if the server did not say one."""
    told = {item.key: str(item.value) for item in call.trailing_metadata() or ()}
    if ERROR_KEY not in told:
        return None
    serial = told.get(MANIFEST_KEY, "")
    manifest = int(serial) if serial.isascii() and serial.isdigit() and len(serial) <= _MAX_DIGITS else None
    return Refusal(told[ERROR_KEY], str(call.details() or ""), manifest).error()


def details(call: grpc.RpcError) -> str:
    """Return what gRPC says of a `call` that failed on the way, without a typed error of the server."""
    return f"{shown(call.details() or '') or 'no details'} ({call.code().name})"
