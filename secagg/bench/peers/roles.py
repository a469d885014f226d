"""The roles of a peer, and what is measured of each: seconds, bytes, memory.

A round has one phase or more. In each of them every site sends a message, the server adds it as it comes, and in the
end answers all of them; the answer of the last phase holds the mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..memory import peak, resident
from ..turns import stopwatch
from .job import Job


class Site(Protocol):
    """All sites of a round. Made from a `Job`, in whose folder of keys it leaves what the others need."""

    def send(self, phase: int, site: int, answer: bytes | None) -> bytes:
        """Return the message of a site; `answer` is that of the phase before."""


class Server(Protocol):
    """The server of a round. Made from a `Job`."""

    def add(self, phase: int, message: Path) -> None:
        """Read a message, and add what it holds."""

    def finish(self, phase: int, answer: Path) -> None:
        """Write the answer to all sites."""


class Reader(Protocol):
    """A site that reads the mean. Made from a `Job`."""

    def read(self, answer: bytes) -> Mapping[str, NDArray[np.floating]]:
        """Return the weighted mean."""


class Measured:
    """A role at work: does what it is asked for, and returns the numbers.

    The first message of a phase warms up, and its time does not count: libraries load what they need, and a server has
    nothing yet to add to.

    Parameters
    ----------
    role : Site, Server or Reader
        Who works.
    job : Job
        The work; its messages lie in its folder.
    """

    def __init__(self, role: Any, job: Job) -> None:
        self._role, self._job, self._folder = role, job, Path(job.folder)
        self._start = resident()

    def send(self, phase: int) -> dict[str, Any]:
        """Let each site send its message of a phase."""
        answer = self._answer(phase - 1).read_bytes() if phase else None
        seconds, sizes = [], []
        for site in range(self._job.sites):
            elapsed, message = stopwatch(partial(self._role.send, phase, site, answer))
            seconds.append(elapsed)
            sizes.append(len(message))
            self._message(phase, site).write_bytes(message)
            del message
        return {"seconds": median(seconds[1:]), "nbytes": max(sizes), "peak": self._peak()}

    def add(self, phase: int) -> dict[str, Any]:
        """Let the server add all messages of a phase, and answer."""
        seconds = []
        for site in range(self._job.sites):
            elapsed, _ = stopwatch(partial(self._role.add, phase, self._message(phase, site)))
            seconds.append(elapsed)
        answer = self._answer(phase)
        finish, _ = stopwatch(partial(self._role.finish, phase, answer))
        nbytes = answer.stat().st_size
        return {"seconds": median(seconds[1:]), "finish": finish, "nbytes": nbytes, "peak": self._peak()}

    def read(self, phase: int) -> dict[str, Any]:
        """Let the reader decrypt the mean, twice."""
        answer = self._answer(phase).read_bytes()
        self._role.read(answer)
        seconds, mean = stopwatch(partial(self._role.read, answer))
        return {"seconds": seconds, "max_error": self._job.max_error(mean)}

    def _peak(self) -> int:
        return max(0, peak() - self._start)

    def _message(self, phase: int, site: int) -> Path:
        return self._folder / f"up-{phase}-{site}"

    def _answer(self, phase: int) -> Path:
        return self._folder / f"down-{phase}"
