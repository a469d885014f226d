"""A grid that holds one reply, whatever the number of nodes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid


class OneByOne:
    """Pulls the replies of a grid of Flower's one by one, when they are asked for; all else is that grid's."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Push the messages now, and yield replies until all have come or `timeout` seconds are over."""
        waiting = [identity for identity in self._grid.push_messages(messages) if identity]
        return self._pull(waiting, float("inf") if timeout is None else time.monotonic() + timeout)

    def _pull(self, waiting: list[str], end: float) -> Iterator[Message]:
        pause = 0.0
        while waiting and time.monotonic() < end:
            time.sleep(pause)
            pause = min(2 * pause + 0.05, 3.0)
            for identity in tuple(waiting):
                found = list(self._grid.pull_messages([identity]))
                while found:
                    waiting.remove(identity)
                    pause = 0.0
                    yield found.pop()  # and keep no reference
