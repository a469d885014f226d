"""What Ctrl-C, SIGTERM and SIGHUP interrupt, and what not."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does: what it has half made, secret files too, is removed.

    So does SIGHUP, which a terminal sends that is closed; where it is ignored, as `nohup` has it, it stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # whoever has the main thread decides
        return

    came: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        came.append(number)
        raise KeyboardInterrupt(number)

    numbers = [signal.SIGTERM, *([signal.SIGHUP] if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else [])]
    before = [signal.signal(number, stop) for number in numbers]
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if came and not interrupt.args:  # a library, Ray say, has raised its own in place of it
            raise KeyboardInterrupt(came[0]) from None
        raise
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put off Ctrl-C, SIGTERM and SIGHUP. Masks would not do: libraries have threads that a signal can reach."""
    if threading.current_thread() is not threading.main_thread():
        yield  # handlers run in the main thread, and interrupt that
        return
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, lambda number, _: came.append(number)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
        for late in came:
            signal.raise_signal(late)  # one that is ignored is ignored now
