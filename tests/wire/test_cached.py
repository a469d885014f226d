"""Properties that are computed once; also where a thread computes one while the process is forked."""

from __future__ import annotations

import threading

from forking import forked

from secagg.wire.cached import cached_property


class Object:
    def __init__(self) -> None:
        self.asked = 0
        self.inside, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    @cached_property
    def value(self) -> bytes:
        """Seven."""
        self.asked += 1
        self.inside.set()
        self.go_on.wait()
        return b"7"


def test_a_value_is_computed_once() -> None:
    one = Object()
    assert (one.value, one.value, one.asked) == (b"7", b"7", 1)
    assert Object.value.__doc__ == "Seven."


def test_a_child_computes_what_a_thread_of_the_parent_was_at() -> None:
    one, two = Object(), Object()
    one.go_on.clear()
    thread = threading.Thread(target=lambda: one.value)
    thread.start()
    one.inside.wait()
    try:
        assert forked(lambda: two.value)() == b"7"
    finally:
        one.go_on.set()
        thread.join()
