"""A hard timeout: what hangs fails, and says where."""

from __future__ import annotations

import faulthandler
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

#: Far beyond what any test, or any step of a long one, takes on a slow machine.
HARD_TIMEOUT_SECONDS = 300


@contextmanager
def watched() -> Iterator[Callable[[], None]]:
    """Yield what gives the time anew, for tests of many steps."""

    def hung(number: int, frame: FrameType | None) -> None:
        faulthandler.dump_traceback(sys.__stderr__)
        raise TimeoutError(f"the test, or a step of it, took over {HARD_TIMEOUT_SECONDS} s")

    def rearm() -> None:
        signal.alarm(HARD_TIMEOUT_SECONDS)
        # For a hang outside Python, where no signal handler runs: ends the whole run.
        faulthandler.dump_traceback_later(4 * HARD_TIMEOUT_SECONDS, exit=True, file=sys.__stderr__)

    earlier = signal.signal(signal.SIGALRM, hung)
    rearm()
    try:
        yield rearm
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, earlier)
