"""What a site's part in a federation tells whoever runs it, as it happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

#: Takes what is done and the total, in any unit.
Report = Callable[[float, float], None]


class Reporter:
    """Tells nothing; subclasses show it to somebody. Lines are for people, and have no line break."""

    def step(self, what: str) -> AbstractContextManager[Report]:
        """Show one piece of work, such as ``"round 0 (1 of 4): upload"``, while the block lasts.

        Yields
        ------
        callable
            To be called with the amount done and the total.
        """
        return _silent()

    def news(self, line: str) -> None:
        """Show what has come out."""

    def warning(self, line: str) -> None:
        """Show what needs attention, although the work goes on."""


@contextmanager
def _silent() -> Iterator[Report]:
    yield lambda done, total: None
