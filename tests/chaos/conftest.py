"""A seed for every test of this folder, which its output names, and a hard timeout against hangs."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator

import pytest
from hanging import watched

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
    with watched() as rearm:
        yield rearm
