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
_waited_for: list[threading.Lock] = []  # what the forks at work hold: one, or one in a signal handler in another
_begun: list[int] = []  # how much that was when each of them began
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
    _begun.append(len(_waited_for))
    for mutex in tuple(_every):  # a signal handler may make one
        lock = mutex._lock
        if mutex._whole and lock not in _waited_for and lock.acquire(timeout=PATIENCE_SECONDS):
            _waited_for.append(lock)


def _after_in_parent() -> None:
    """Give back what this fork has taken: a fork around it needs the rest."""
    first = _begun.pop()
    while len(_waited_for) > first:
        _waited_for.pop().release()
    _forking.release()


def _after_in_child() -> None:
    """Begin with locks that nobody holds; a fork around this one goes on in this process, too."""
    global _forking
    _forking = threading.RLock()
    _waited_for.clear()
    _begun[:] = [0] * (len(_begun) - 1)
    for _ in _begun:
        _forking.acquire()
    for mutex in tuple(_every):
        mutex._lock = threading.Lock()


os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
