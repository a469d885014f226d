"""How the typed errors of secagg travel over gRPC.

A refused call ends with the status code below, the error's message as details, and the name of its type in the
trailing metadata, so that the other side raises the same type.
"""

from __future__ import annotations

from typing import NamedTuple, NoReturn

import grpc

from secagg import errors
from secagg.errors import SecAggError, one_line

ERROR_KEY = "secagg-error"
MAX_MESSAGE_LENGTH = 2000

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

#: It decrypts nothing: to say that a decryption failed, or that too many did, is not its business.
_NOT_THE_SERVERS = (errors.DecryptionError, errors.EpochError)

#: Every type that a server can name.
_KINDS = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, SecAggError) and kind not in _NOT_THE_SERVERS
}


class Refusal(NamedTuple):
    """What of an error travels: a status code, the name of its type, its message."""

    code: grpc.StatusCode
    kind: str
    message: str

    @classmethod
    def of(cls, error: SecAggError) -> Refusal:
        """Return what is told of an error."""
        code = next(code for kind, code in _CODES if isinstance(error, kind))
        return cls(code, type(error).__name__, str(error)[:MAX_MESSAGE_LENGTH])

    def abort(self, context: grpc.ServicerContext) -> NoReturn:
        """End the call of `context` with it."""
        context.set_trailing_metadata(((ERROR_KEY, self.kind),))
        context.abort(self.code, self.message)


def error_of(call: grpc.RpcError) -> SecAggError | None:
    """Return the typed error that ended `call` on the server; None if the server did not say one."""
    for item in call.trailing_metadata() or ():
        kind = _KINDS.get(str(item.value)) if item.key == ERROR_KEY else None
        if kind is not None:
            return kind(_details(call) or "the server refused the call")
    return None


def details(call: grpc.RpcError) -> str:
    """Return what gRPC says of a `call` that failed on the way, without a typed error of the server."""
    return f"{_details(call) or 'no details'} ({call.code().name})"


def _details(call: grpc.RpcError) -> str:
    return one_line(str(call.details() or ""))[:MAX_MESSAGE_LENGTH]
