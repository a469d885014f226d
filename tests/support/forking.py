"""Forks of a process that has threads: what a child does and returns, within a time in which no hang is."""

from __future__ import annotations

import os
import select
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

#: Far beyond what a child takes here, on a slow machine.
SECONDS = 60.0


@contextmanager
def threads_are_known() -> Iterator[None]:
    """From Python 3.12 on, a fork with threads is warned of: that it works all the same is what is tested."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"This process .* is multi-threaded", DeprecationWarning)
        yield


def forked(work: Callable[[], bytes]) -> Callable[[], bytes]:
    """Fork a child that does `work`; return what waits for its result. A child that hangs is killed, and fails."""
    reader, writer = os.pipe()
    with threads_are_known():
        child = os.fork()
    if not child:
        code = 1
        try:
            with os.fdopen(writer, "wb") as pipe:
                pipe.write(work())
            code = 0
        except BaseException:  # noqa: BLE001  nothing of the test goes on in the child
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writer)

    def result() -> bytes:
        received, deadline = bytearray(), time.monotonic() + SECONDS
        try:
            while select.select([reader], [], [], max(0.0, deadline - time.monotonic()))[0]:
                piece = os.read(reader, 1 << 20)
                if not piece:
                    assert os.waitpid(child, 0)[1] == 0, "the child failed: see its traceback"
                    return bytes(received)
                received += piece
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            pytest.fail(f"the child hung for {SECONDS:g} s")
        finally:
            os.close(reader)

    return result
