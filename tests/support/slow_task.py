"""A task for `secagg site` that takes its time, and needs no library for it: ``--task slow_task.py:Slow``."""

from __future__ import annotations

import time

import numpy as np


class Slow:
    """A round takes seconds, in which a site can be killed, and adds `step` to every value."""

    examples = 64

    def __init__(self, step: float) -> None:
        self.model = {"w": np.zeros(1000, np.float32)}
        self._step = step

    def train(self, round: int) -> None:
        time.sleep(3)
        self.model["w"] += np.float32(self._step)

    def validate(self) -> dict[str, float]:
        return {"mean": float(self.model["w"].mean())}
