"""What a site's part in a federation tells whoever runs it, as it happens."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager

from ..setup.progress import Report, silent


class Reporter:
    """Tells nothing; subclasses show it to somebody. Lines are for people, and have no line break."""

    def step(self, what: str) -> AbstractContextManager[Report]:
        """Show one piece of work, such as ``"round 0 (1 of 4): upload"``, for as long as what it returns is entered.

        Yields
        ------
        callable
            To be called with the amount done and the total.
        """
        return silent(what)

    def news(self, line: str) -> None:
        """Show what has come out."""

    def warning(self, line: str) -> None:
        """Show what needs attention, although the work goes on."""


class Logged(Reporter):
    """Writes lines to the logger ``secagg.site``."""

    def __init__(self) -> None:
        self._log = logging.getLogger(__package__)

    def news(self, line: str) -> None:
        """Log it as information."""
        self._log.info("%s", line)

    def warning(self, line: str) -> None:
        """Log it as a warning."""
        self._log.warning("%s", line)
