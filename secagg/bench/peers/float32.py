"""Plain averaging: float32 values and nothing around them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .job import Job


class Site:
    """See `roles.Site`."""

    def __init__(self, job: Job) -> None:
        self._states, self._weights = job.states, job.weights

    def send(self, phase: int, site: int, answer: bytes | None) -> bytes:
        """See `roles.Site`; the weight stands first."""
        return b"".join(
            [np.float32(self._weights[site]).tobytes(), *map(np.ndarray.tobytes, self._states[site].values())]
        )


class Server:
    """See `roles.Server`."""

    def __init__(self, job: Job) -> None:
        size = sum(int(np.prod(shape)) for shape in job.shapes.values())
        self._total, self._weight = np.zeros(size, np.float32), np.float32(0)

    def add(self, phase: int, message: Path) -> None:
        """See `roles.Server`."""
        weight, values = np.split(np.fromfile(message, np.float32), [1])
        self._total += weight * values
        self._weight += weight[0]

    def finish(self, phase: int, answer: Path) -> None:
        """See `roles.Server`."""
        (self._total / self._weight).tofile(answer)


class Reader:
    """See `roles.Reader`."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def read(self, answer: bytes) -> Mapping[str, NDArray[np.floating]]:
        """See `roles.Reader`."""
        return self._job.shaped(np.frombuffer(answer, np.float32))
