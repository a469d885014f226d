"""What the sites train: one network for all of them, on parts of the MNI152 brain."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from monai.networks.nets import SegResNet

from ...demo import mni152


@dataclass(frozen=True)
class Network:
    """A network, and what it is trained with.

    Parameters
    ----------
    title : str
        For tables.
    make : callable
        Of a seed.
    patches : int, optional
        The most of them that a site uses; without it, all.
    threads : int, optional
        Of PyTorch; without it, as many as there are cores.
    """

    title: str
    make: Callable[[int], torch.nn.Module]
    patches: int | None = None
    threads: int | None = None


def _segresnet(seed: int) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SegResNet(init_filters=16, out_channels=2)


#: Clara's, and the demo's with little data, for a look and for tests.
NETWORKS: Mapping[str, Network] = {
    "segresnet": Network("SegResNet", _segresnet),
    "small": Network("SegResNet, small", mni152.make_network, patches=2, threads=1),
}


class Task(Protocol):
    """What is trained, at all sites in turn."""

    network: Any

    def examples(self, site: int) -> int:
        """Return the weight of a site."""

    def train(self, site: int, round: int) -> None:
        """Train the network as one of the sites does in a round."""


class Brain:
    """White matter in the MNI152 brain, as of `secagg.demo.mni152`; training is a function of seed, round and site.

    Parameters
    ----------
    network : str
        Which of `NETWORKS`.
    sites : int
        How many share the patches.
    seed : int
        Of the network, and of the order of the patches.
    """

    def __init__(self, network: str, sites: int, seed: int) -> None:
        logging.getLogger("ignite").setLevel(logging.CRITICAL)  # it would log Ctrl-C as an error
        self._plan, self._seed = NETWORKS[network], seed
        torch.set_num_threads(self._plan.threads or len(os.sched_getaffinity(0)))
        self.network = self._plan.make(seed)
        most = self._plan.patches
        self._patches = [mni152.site_patches(site, sites)[:most] for site in range(sites)]
        self._validation = mni152.validation_patches()[:most]

    def examples(self, site: int) -> int:
        """Return how many patches a site has."""
        return len(self._patches[site])

    def train(self, site: int, round: int) -> None:
        """Train the network for a round of a site: one pass over its patches."""
        patches, seed = self._patches[site], (self._seed, round, site)
        mni152.make_trainer(self.network, patches, seed=seed, epochs=1).run()

    def dice(self) -> float:
        """Return the Dice of the network on the held-out patches."""
        return mni152.dice(self.network, self._validation)


class RandomDifferences:
    """Sites that do not train: each changes every value by a little at random."""

    def __init__(self, network: str) -> None:
        self.network = NETWORKS[network].make(0)

    def examples(self, site: int) -> int:
        """Return the weight that all have."""
        return 1

    def train(self, site: int, round: int) -> None:
        """Change the network."""
        generator = torch.Generator().manual_seed(1000 * round + site)
        with torch.no_grad():
            for parameter in self.network.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.01)
