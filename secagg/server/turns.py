"""Streams under way: each must move, and end; so many uploads at a time; one of a kind a site."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

from ..protocol.messages import BusyError
from .limits import Limits

T = TypeVar("T")

_POLL_SECONDS = 1.0


class Connection(Protocol):
    """What of a transport's call is needed here: a gRPC context has it."""

    def is_active(self) -> bool:
        """Return whether the other side still waits."""

    def cancel(self) -> object:
        """End the call."""


class Stream:
    """A call that sends or receives, as the watchdog sees it.

    It waits for the other side inside `waiting`, and only there. When it has waited for too long, or when it has
    lasted too long altogether, it is cancelled: the transport then wakes the thread that waits.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.began = time.monotonic()
        self._waits_since: float | None = None

    def incoming(self, messages: Iterable[T]) -> Iterator[T]:
        """Yield messages of the other side."""
        iterator = iter(messages)
        while True:
            self._waits_since = time.monotonic()
            try:
                message = next(iterator)
            except StopIteration:
                return
            finally:
                self._waits_since = None
            yield message

    def outgoing(self, messages: Iterable[T]) -> Iterator[T]:
        """Yield messages to the other side."""
        for message in messages:
            self._waits_since = time.monotonic()
            yield message
            self._waits_since = None

    def idle(self, now: float) -> float:
        """Return for how many seconds it has waited for the other side."""
        since = self._waits_since
        return 0.0 if since is None else now - since


class Turns:
    """The streams under way of a server.

    Parameters
    ----------
    limits : Limits
        Uploads at a time, seconds.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.Condition()
        self._streams: set[Stream] = set()
        self._turns: dict[tuple[str, str], list[Stream]] = {}
        self._uploads = 0
        self._stopped = threading.Event()

    @property
    def uploads(self) -> int:
        """How many uploads are being received."""
        return self._uploads

    @contextmanager
    def watched(self, connection: Connection) -> Iterator[Stream]:
        """Watch a call while the block lasts."""
        stream = Stream(connection)
        with self._lock:
            self._streams.add(stream)
        try:
            yield stream
        finally:
            with self._lock:
                self._streams.discard(stream)

    @contextmanager
    def only(self, site: str, kind: str, stream: Stream) -> Iterator[None]:
        """Let one stream of a kind a site into the block, the newest one.

        A site that tries again after a broken connection need not wait until the server has noticed the break: the
        earlier stream is cancelled, and has left when the block begins.

        Raises
        ------
        BusyError
            If a newer one came while this one waited, or the earlier one does not leave.
        """
        key = (site, kind)
        with self._lock:
            queue = self._turns.setdefault(key, [])
            queue.append(stream)
            for earlier in queue[:-1]:
                earlier.connection.cancel()
        try:
            self._wait(lambda: queue[0] is stream, stream)
            with self._lock:
                if queue[-1] is not stream:
                    raise BusyError(f"a newer {kind} of site {site!r} is under way")
            yield
        finally:
            with self._lock:
                queue.remove(stream)
                if not queue and self._turns.get(key) is queue:
                    del self._turns[key]
                self._lock.notify_all()

    @contextmanager
    def slot(self, stream: Stream) -> Iterator[None]:
        """Let so many uploads into the block at a time.

        Raises
        ------
        BusyError
            If there was no turn in time.
        """

        def take() -> bool:
            if self._uploads >= self._limits.uploads_in_flight:
                return False
            self._uploads += 1
            return True

        self._wait(take, stream)
        try:
            yield
        finally:
            with self._lock:
                self._uploads -= 1
                self._lock.notify_all()

    def watch(self) -> None:
        """Cancel streams that do not move, or do not end, until `stop` is called."""
        limits = self._limits
        while not self._stopped.wait(min(_POLL_SECONDS, limits.idle_seconds / 4, limits.upload_seconds / 4)):
            now = time.monotonic()
            with self._lock:
                streams = list(self._streams)
            for stream in streams:
                if stream.idle(now) >= limits.idle_seconds or now - stream.began >= limits.upload_seconds:
                    stream.connection.cancel()

    def stop(self) -> None:
        """End `watch`."""
        self._stopped.set()

    def _wait(self, condition: Callable[[], bool], stream: Stream) -> None:
        deadline = time.monotonic() + self._limits.slot_seconds
        with self._lock:
            while not condition():
                left = deadline - time.monotonic()
                if left <= 0 or not stream.connection.is_active():
                    raise BusyError(f"{self._uploads} uploads are under way: try again")
                self._lock.wait(min(left, _POLL_SECONDS))
