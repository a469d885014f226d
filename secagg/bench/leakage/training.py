"""What a site does with one image: some steps of an optimiser, and the difference that they have made."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .victims import Victim


@dataclass(frozen=True)
class Recipe:
    """How a site trains: so many steps, all on the one image."""

    optimiser: str = "sgd"
    steps: int = 1

    def make(self, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
        """Return the optimiser, at a learning rate that is usual for it."""
        return torch.optim.Adam(parameters, 1e-3) if self.optimiser == "adam" else torch.optim.SGD(parameters, 0.1)


def update(victim: Victim, recipe: Recipe, image: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Return what a site sends where nothing is encrypted: the trained network less the global model."""
    network = deepcopy(victim.network)
    optimiser = recipe.make(list(network.parameters()))
    for _ in range(recipe.steps):
        optimiser.zero_grad()
        torch.autograd.backward(functional.cross_entropy(network(image[None]), target[None]))
        optimiser.step()
    return {name: value.detach() - victim.parameters[name] for name, value in network.named_parameters()}


def updates(victim: Victim, recipe: Recipe) -> list[dict[str, Tensor]]:
    """Return the update that each candidate would give: so the server compares, and one of them is the true one."""
    return [update(victim, recipe, image, target) for image, target in zip(victim.images, victim.targets, strict=True)]
