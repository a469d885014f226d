"""Calls that are tried again until they succeed, are refused, or have taken too long."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from ..errors import TransportError
from ..protocol.messages import BusyError

T = TypeVar("T")

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0


def pauses() -> Iterator[float]:
    """Yield how many seconds to wait before each new try: more and more, up to some seconds, and never the same."""
    pause = _FIRST_PAUSE_SECONDS
    while True:
        yield pause * random.uniform(0.5, 1.0)  # sites that were cut off together do not come back together
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def persist(what: str, call: Callable[[float], T], seconds: float, progress: Callable[[], int] = lambda: 0) -> T:
    """Return what `call` returns; try again, with growing pauses, while that may help.

    Parameters
    ----------
    what : str
        What is done, for the error's message.
    call : callable
        Takes the seconds that are left, and raises `BusyError` if it may be tried again.
    seconds : float
        How long all of it may take.
    progress : callable
        Returns how far the calls have come; when that has changed, the pauses begin anew.

    Raises
    ------
    SecAggError
        What `call` has raised.
    TransportError
        If it failed on the way, or did not succeed in time; the message begins with `what`.
    """
    deadline = time.monotonic() + seconds
    waits, before = pauses(), progress()
    while True:
        started = time.monotonic()
        try:
            return call(deadline - started)
        except TransportError as error:
            if type(error) is not TransportError:
                raise
            raise TransportError(f"{what} failed: {error}") from None
        except BusyError as error:
            now, before, earlier = time.monotonic(), progress(), before
            if before != earlier or now - started > _LONGEST_PAUSE_SECONDS:
                waits = pauses()  # a bad connection, no server that is away
            wait = next(waits)
            if now + wait >= deadline:
                raise TransportError(f"{what} failed: {error}") from None
        time.sleep(wait)
