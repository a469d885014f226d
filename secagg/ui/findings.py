"""What a check of ``secagg doctor`` finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..errors import SecAggError


@dataclass(frozen=True)
class Finding:
    """What one check found: its level is ``"ok"``, ``"warning"`` or ``"FAIL"``."""

    level: str
    what: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:<8} {self.what:<14} {self.text}"


class Doubt(Exception):
    """Raised by a check that finds something which works, and needs attention."""


def examine(what: str, check: Callable[[], str]) -> Finding:
    """Carry out one check; what it raises becomes the finding."""
    try:
        return Finding("ok", what, check())
    except Doubt as doubt:
        return Finding("warning", what, str(doubt))
    except SecAggError as error:
        return Finding("FAIL", what, str(error))
    except OSError as error:
        return Finding("FAIL", what, f"{error.filename or 'a file'}: {error.strerror or error}")
