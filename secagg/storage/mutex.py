"""A lock between threads that does not outlive them in a forked process.

A fork copies one thread, and every lock as it is: what another thread held stays held in the child, where nobody is
left to give it back.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakSet

#: Longest that a fork waits for a block, in seconds. Such blocks take milliseconds: only one that the forking thread
#: itself is in, as a signal handler can be, never ends.
PATIENCE_SECONDS = 10.0

_every: WeakSet[Mutex] = WeakSet()
_waited_for: list[threading.Lock] = []  # what the fork at work holds
_forking = threading.RLock()  # one fork at a time; reentrant, as a signal handler may fork anywhere


class Mutex:
    """Lets one thread after another into a block. In a process that is forked meanwhile it is free.

    Parameters
    ----------
    whole : bool
        Whether a fork waits until the block that is at work has ended: for blocks of milliseconds that must not be cut
        in the middle, as the work of a native library, which may have locks of its own.
    """

    def __init__(self, *, whole: bool = False) -> None:
        self._lock = threading.Lock()
        self._whole = whole
        with _forking:
            _every.add(self)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other threads out of the block. It is not reentrant."""
        with self._lock:  # gives back this very lock, also in a child that has another one by then
            yield


def _before() -> None:
    """Wait for what must be whole in the child."""
    _forking.acquire()
    for mutex in _every:
        if mutex._whole and mutex._lock.acquire(timeout=PATIENCE_SECONDS):
            _waited_for.append(mutex._lock)


def _after_in_parent() -> None:
    while _waited_for:
        _waited_for.pop().release()
    _forking.release()


def _after_in_child() -> None:
    """Begin with locks that nobody holds."""
    global _forking
    _forking = threading.RLock()
    _waited_for.clear()
    for mutex in _every:
        mutex._lock = threading.Lock()


os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
