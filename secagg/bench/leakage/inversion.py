"""Images out of gradients: whatever image has the gradient that is seen (Geiping et al. 2020, arXiv:2003.14053)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...setup.progress import Report
from .victims import Victim
from .view import View

#: Learning rate of the signed steps, at the first and the last of them; between them it falls by equal factors.
_RATES = (0.1, 1e-3)

#: Weight of the total variation, likewise: first a smooth image, in the end what the gradient says.
_SMOOTH = (0.1, 1e-4)

#: How unlike what is seen each of the images is, of shape (images,).
Cost = Callable[[Tensor], Tensor]


def gradient_cost(victim: Victim, view: View, targets: Tensor) -> Cost:
    """Return the cost of section 4 there, 1 − cosine similarity with the gradient, on what is seen of it."""

    def cost(images: Tensor) -> Tensor:
        if not view.places:
            return torch.zeros(len(images))
        return 1 - view.cosines(-victim.gradients(images, targets))  # an update goes down the gradient

    return cost


def invert(cost: Cost, shape: torch.Size, steps: int, seed: int, report: Report) -> Tensor:
    """Return the images of a shape with the least cost that signed steps of Adam find, with values from 0 to 1.

    They begin as noise. All images are sought at once, each by itself.
    """
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    images = noise.requires_grad_()
    optimiser = torch.optim.Adam([images], _RATES[0])
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = _between(_RATES, step / steps)
        total = (cost(images) + _between(_SMOOTH, step / steps) * _variation(images)).sum()
        (gradient,) = torch.autograd.grad(total, images)
        images.grad = gradient.sign()
        optimiser.step()
        with torch.no_grad():
            images.clamp_(0, 1)
        report(step + 1, steps)
    return images.detach()


def _between(ends: tuple[float, float], share: float) -> float:
    first, last = ends
    return float(first * (last / first) ** share)


def _variation(images: Tensor) -> Tensor:
    """Return the total variation of each image, a mean."""
    down, right = images.diff(dim=-2), images.diff(dim=-1)
    return down.abs().mean((1, 2, 3)) + right.abs().mean((1, 2, 3))
