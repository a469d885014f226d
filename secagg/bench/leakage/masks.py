"""Parts of an update that others encrypt value by value: no configuration of secagg does so, and masks stand for it."""

from __future__ import annotations

import torch
from torch import Tensor

from .images import CLASSES
from .victims import Victim


def random_mask(victim: Victim, share: float, seed: int) -> Tensor:
    """Return which values are hidden: a share of them, drawn; bool of shape (values,)."""
    size = sum(victim.sizes.values())
    drawn = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    return drawn < round(share * size)


def sensitive_mask(victim: Victim, share: float) -> Tensor:
    """Return which values FedML-HE hides, the most sensitive ones (Jin et al. 2023, arXiv:2303.10837, section 3.1).

    The sensitivity of a parameter is how the loss's derivative by it changes with the label, the mean of magnitudes
    over the data. Cross-entropy is linear in the label: its derivative by the weight of a class is that class's loss.
    """
    classes = (torch.full_like(victim.targets, number) for number in range(CLASSES))
    sensitivity = torch.stack([victim.gradients(victim.images, each).abs().mean(0) for each in classes]).sum(0)
    hidden = torch.zeros(len(sensitivity), dtype=torch.bool)
    hidden[sensitivity.topk(round(share * len(sensitivity))).indices] = True
    return hidden
