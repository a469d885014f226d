"""How work that takes a while says how far it is, whoever shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

#: Takes what is done and the total, in any unit.
Report = Callable[[float, float], None]

#: Takes the name of one piece of work; what it returns is entered for as long as the work lasts.
Progress = Callable[[str], AbstractContextManager[Report]]


@contextmanager
def silent(what: str) -> Iterator[Report]:
    """Show nothing."""
    yield lambda done, total: None
