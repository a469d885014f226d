"""A seed for every test of this folder, which its output names, and a hard timeout against hangs."""

from __future__ import annotations

import faulthandler
import os
import secrets
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType

import pytest

#: Far beyond what any step takes on a slow machine.
HARD_TIMEOUT_SECONDS = 300

Watch = Callable[[], None]
Report = Callable[[str], None]


@pytest.fixture
def seed() -> int:
    """What decides all that is random here, as far as a test decides it: threads, processes and the network do not.

    ``CHAOS_SEED=… pytest …`` does it again.
    """
    number = int(os.environ.get("CHAOS_SEED") or secrets.randbits(32))
    print(f"CHAOS_SEED={number}")  # shown if the test fails
    return number


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> Report:
    """Say what the long form of a test has seen."""

    def say(text: str) -> None:
        print(text)
        if request.node.get_closest_marker("long") is not None:
            with capsys.disabled():
                print(f"\n{request.node.name}: {text}", flush=True)

    return say


@pytest.fixture(autouse=True)
def watch() -> Iterator[Watch]:
    """A test that hangs fails, and says where. Call it at each step: it gives the next one its whole time."""

    def hung(number: int, frame: FrameType | None) -> None:
        faulthandler.dump_traceback(sys.__stderr__)
        raise TimeoutError(f"a step took over {HARD_TIMEOUT_SECONDS} s")

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
