"""A task for `secagg site` that takes no time: ``--task tiny_task:Tiny``."""

from __future__ import annotations

import torch


class Tiny:
    examples = 1

    def __init__(self) -> None:
        self.model = torch.nn.ParameterDict({"w": torch.zeros(1000)})

    def train(self, round: int) -> None:
        pass
