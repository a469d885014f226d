"""What can go wrong, one type for each thing that a caller can handle.

Every error derives from :class:`SecAggError`; its message names the value at fault and the remedy. Native
exceptions of HE libraries are translated where they arise and never reach a caller.
"""

from __future__ import annotations

import sys
import time
import warnings
from typing import Any

_PACKAGE = __name__.partition(".")[0]

#: The registry of each warning that is issued once: in it Python notes that it has been, unless a filter ignored it.
_ISSUED: dict[tuple[type[Warning], str], dict[Any, Any]] = {}


def show(value: object) -> str:
    """Return a value for a message: its ``repr``, cut, also where Python refuses to print a huge number."""
    try:
        text = repr(value)
    except ValueError:
        return f"a number of {value.bit_length()} bits" if isinstance(value, int) else f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}…"


def one_line(text: str) -> str:
    """Return text of another side, with what could steer a terminal or forge lines of a log escaped."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def show_time(seconds: float) -> str:
    """Return a time in seconds since 1970 for a message."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def show_size(nbytes: int) -> str:
    """Return bytes for a message, in a unit that fits: 1.5 GB, in powers of 1000."""
    size, unit = float(nbytes), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:.1f} {unit}"


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Issue a warning at the line outside this package that has led to it, however deep inside it arises."""
    _issue(message, category, None)


def warn_once(message: str, category: type[Warning] = UserWarning) -> None:
    """Issue a warning as `warn` does, and not again in this process, whatever line leads to it.

    One that a filter has ignored has not been issued; where filters want all of them, or errors, each is.
    """
    registry = _ISSUED.setdefault((category, message), {})
    if all(key == "version" for key in registry):
        _issue(message, category, registry)


def _issue(message: str, category: type[Warning], registry: dict[Any, Any] | None) -> None:
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == _PACKAGE:
        frame = frame.f_back
    if registry is None:
        registry = frame.f_globals.setdefault("__warningregistry__", {})
    module = frame.f_globals.get("__name__", "<string>")
    warnings.warn_explicit(message, category, frame.f_code.co_filename, frame.f_lineno, module, registry)


class PrecisionWarning(UserWarning):
    """Rounding loses more of what a site sends than training can be expected to bear."""


class PrivacyWarning(UserWarning):
    """A configuration that works, and protects less than one would think."""


class KitWarning(UserWarning):
    """A kit that works, and is not as it would be made today."""


class SecAggError(Exception):
    """Root of every error that secagg raises on purpose."""


class ConfigError(SecAggError):
    """A configuration that cannot work: unknown key, unsafe or unsupported params, no capacity for the sum."""


class BackendUnavailableError(SecAggError):
    """A library, such as that of the chosen backend, is not installed; the message names the extra to install."""


class BackendError(SecAggError):
    """The HE library refused or failed at something that it should do."""


class KeyFileError(SecAggError):
    """A key file is missing, truncated or damaged, or a key of the other role was given."""


class StorageError(SecAggError):
    """A file could not be written; nothing was left half-written."""


class QuotaError(StorageError):
    """No room: the disk is full, or what may be used of it is."""


class RangeError(SecAggError):
    """A value lies outside its declared bound (``max_abs``, ``max_weight``), or is NaN or infinite."""


class LayoutError(SecAggError):
    """Names, shapes, dtypes or encrypted set differ from what is expected, or cannot be aggregated."""


class FormatError(SecAggError):
    """Bytes that are not well-formed: magic, version, length, header or word of what is sent or stored."""


class DigestError(FormatError):
    """Bytes whose digest does not fit: damaged on the way or on the disk."""


class MismatchError(SecAggError):
    """An update or aggregate made under another configuration than the one at hand."""


class KeyMismatchError(MismatchError):
    """An update or aggregate made under another key."""


class RoundMismatchError(MismatchError):
    """An update or aggregate of another round."""


class ManifestMismatchError(MismatchError):
    """An update or aggregate made under another project manifest: join again, and encrypt again."""


class ScalesMismatchError(MismatchError):
    """An update made under other scales than those of its round, or under none: calibrate again, and encrypt again."""


class DuplicateError(SecAggError):
    """A site or a nonce that is already in the sum."""


class CapacityError(SecAggError):
    """More contributions than ``max_clients``, the number for which the sum was planned."""


class SignatureError(SecAggError):
    """A signature that is missing, or is not that of the party whose name stands beside it."""


class VerificationError(SecAggError):
    """An aggregate that is not what its list, its round, its global model or the server's receipt say it is."""


class QuorumError(SecAggError):
    """Fewer contributions than ``min_clients``."""


class StateError(SecAggError):
    """A call that does not fit the state of the object: adding after ``finish``, say."""


class DecryptionError(SecAggError):
    """A sum or a stored model did not decrypt. The message is always the same and says nothing about key or noise."""

    def __init__(self) -> None:
        super().__init__(
            "the aggregate does not decrypt to the sum of the updates that it lists, or the model to what was stored; "
            "discard it and run the round again"
        )

    def __reduce__(self) -> tuple[type[DecryptionError], tuple[()], dict[str, object]]:
        return type(self), (), self.__dict__  # an exception would be made again from its message


class ImplausibleSumError(SecAggError):
    """A sum that is that of the updates listed, and is none of what sites send that share a configuration.

    No lie of the server's: its tags fit. A site encrypts by another program, or under other scales, than the others.
    """


class EpochError(SecAggError):
    """Too many aggregates under this key did not decrypt: it decrypts no more, until the federation has another."""


class TaskError(SecAggError):
    """The code of a user's own task raised an exception, which is the cause of this one (``__cause__``)."""


class TransportError(SecAggError):
    """The other side could not be reached, answered too late, or refused the request."""


class IdentityError(TransportError):
    """A party that speaks under another name than its own, is not in the project, or takes part no more.

    Attributes
    ----------
    manifest : int or None
        Serial of the server's project manifest, if it is the server that does not find the party in it.
    """

    manifest: int | None = None
