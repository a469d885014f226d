"""The networks whose updates are attacked, each with the images that a site has and what it learns of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from .images import CLASSES, heights, slices, white_matter

#: What a target is called where the attacker does not know it: everything is background.
_GUESS = 0


@dataclass(frozen=True)
class Victim:
    """A network as all sites and the server have it before a step, and what could have been trained on.

    Parameters
    ----------
    network : torch.nn.Module
        The global model. It is not changed.
    images : Tensor
        All candidates, float32 of shape (candidates, 1, height, width), from 0 to 1.
    targets : Tensor
        What is to be learnt of each: a class, or a mask.
    features : torch.nn.Module, optional
        All that comes before the first dense layer.
    dense : str
        The name of that layer; empty where there is none.
    """

    network: nn.Module
    images: Tensor
    targets: Tensor
    features: nn.Module | None = None
    dense: str = ""
    parameters: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        found = {name: value.detach() for name, value in self.network.named_parameters()}
        object.__setattr__(self, "parameters", found)

    @property
    def sizes(self) -> dict[str, int]:
        """Number of values of each tensor, in the model's order."""
        return {name: value.numel() for name, value in self.parameters.items()}

    def gradients(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the gradient that each image has by itself, float32 of shape (images, values)."""
        found = vmap(grad(self._loss), in_dims=(None, 0, 0))(self.parameters, images, targets)
        return self.flat(found)

    def flat(self, tensors: dict[str, Tensor]) -> Tensor:
        """Return tensors that have a dimension of images in front as vectors, in the model's order."""
        return torch.cat([tensors[name].flatten(1) for name in self.parameters], 1)

    def guessed(self, targets: Tensor) -> Tensor:
        """Return what stands for targets that are not known."""
        return torch.full_like(targets, _GUESS)

    def _loss(self, parameters: dict[str, Tensor], image: Tensor, target: Tensor) -> Tensor:
        output: Any = functional_call(self.network, parameters, (image[None],))
        return functional.cross_entropy(output, target[None])


def lenet() -> Victim:
    """Three convolutions and two dense layers, as gradient inversion is shown on, that learn the height of a slice."""
    layers: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(1, 12, 5, stride=2, padding=2),
        "act1": nn.ELU(),
        "conv2": nn.Conv2d(12, 12, 5, stride=2, padding=2),
        "act2": nn.ELU(),
        "conv3": nn.Conv2d(12, 12, 5, padding=2),
        "act3": nn.ELU(),
        "flat": nn.Flatten(),
        "dense1": nn.Linear(768, 32),
        "act4": nn.ELU(),
        "dense2": nn.Linear(32, CLASSES),
    }
    before = dict(list(layers.items())[: list(layers).index("dense1")])
    network = nn.Sequential(OrderedDict(layers))
    return Victim(network, slices(32), heights(), nn.Sequential(OrderedDict(before)), "dense1")


def segresnet(activation: str) -> Victim:
    """MONAI's SegResNet, small, that segments white matter; its own activation is ``"RELU"``."""
    from monai.networks.nets import SegResNet

    network = SegResNet(
        spatial_dims=2,
        init_filters=8,
        in_channels=1,
        out_channels=2,
        act=activation,
        norm=("GROUP", {"num_groups": 4}),
        blocks_down=(1, 1),
        blocks_up=(1,),
    )
    return Victim(network, slices(24), white_matter(24))


def make_victim(kind: Callable[[], Victim], seed: int) -> Victim:
    """Return a victim whose network has the weights of a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind()
