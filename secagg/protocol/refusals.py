"""How a typed error crosses from a server to a site: the name of its type in `secagg.errors`, and its message."""

from __future__ import annotations

from typing import NamedTuple

from .. import errors
from ..errors import SecAggError, one_line

MAX_MESSAGE_LENGTH = 2000

#: It decrypts nothing: to say that a decryption failed, or that too many did, is not its business.
_NOT_THE_SERVERS = (errors.DecryptionError, errors.EpochError)

#: Every type that a server can name.
_KINDS = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, SecAggError) and kind not in _NOT_THE_SERVERS
}


class Refusal(NamedTuple):
    """What of an error travels: the name of its type, its message, and `IdentityError.manifest`."""

    kind: str
    message: str
    manifest: int | None = None

    @classmethod
    def of(cls, error: SecAggError) -> Refusal:
        """Return what is told of an error, by the nearest type that a server can name; the error is not kept."""
        kind = next(kind for kind in type(error).__mro__ if kind in _KINDS.values())
        return cls(kind.__name__, str(error)[:MAX_MESSAGE_LENGTH], getattr(error, "manifest", None))

    def error(self) -> SecAggError | None:
        """Return the error that the server has named; None if it has named none that a server can have."""
        kind = _KINDS.get(self.kind)
        if kind is None:
            return None
        error = kind(shown(self.message) or "the server refused the call")
        if isinstance(error, errors.IdentityError):
            error.manifest = self.manifest
        return error


def shown(text: object) -> str:
    """Return text of another side as it may be shown: in one line, and not longer than it can be of use."""
    return one_line(str(text))[:MAX_MESSAGE_LENGTH]
