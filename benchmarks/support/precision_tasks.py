"""Five small trainings that precision is measured on, each a pure function of its seed on one thread.

A task has a network, sites that train it on data of their own, and a metric between 0 and 1 on what none of them has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.losses import DiceLoss
from monai.networks.nets import UNet
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

from secagg.demo import mni152

State = dict[str, np.ndarray]
Examples = tuple[torch.Tensor, torch.Tensor]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Task:
    """What a federation trains.

    Parameters
    ----------
    weights : sequence of float
        One a site.
    network : callable
        ``network(seed)`` makes the first global model.
    train : callable
        ``train(network, site, seed)`` trains in place for a round; the seed is that of run, round and site.
    metric : callable
        ``metric(network)``, 1 at best.
    """

    weights: Sequence[float]
    network: Callable[[int], torch.nn.Module]
    train: Callable[[torch.nn.Module, int, tuple[int, ...]], None]
    metric: Callable[[torch.nn.Module], float]


def segresnet() -> Task:
    """The demo: SegResNet on the MNI152 brain, three sites, one pass a round."""
    patches = [mni152.site_patches(site, 3) for site in range(3)]
    held_out = mni152.validation_patches()

    def train(network: torch.nn.Module, site: int, seed: tuple[int, ...]) -> None:
        mni152.make_trainer(network, patches[site], seed=seed, epochs=1).run()

    weights = [float(len(part)) for part in patches]
    return Task(weights, mni152.make_network, train, lambda network: mni152.dice(network, held_out))


def batchnorm_unet() -> Task:
    """White matter in axial slices with intensities of 0 to 0.04: variances of BatchNorm go from 1 to about 1e-5."""
    volume, truth, _ = mni152.load_volume()
    slices = np.arange(40, 140, 2)
    image, label = (
        torch.from_numpy(each[2:194:4, 4:228:4, slices].transpose(2, 0, 1)[:, None]) for each in (volume, truth)
    )
    image = 0.04 * (image - image.min()) / (image.max() - image.min())
    held_out = torch.arange(len(slices)) % 5 == 2
    sizes = [8, 12, 20]  # from the neck upwards
    parts = list(zip(*(each[~held_out].split(sizes) for each in (image, label)), strict=True))
    loss, descend = DiceLoss(sigmoid=True), Descent(1e-3, 40, batch=8)

    def network(seed: int) -> torch.nn.Module:
        return seeded(seed, lambda: UNet(2, 1, 1, (8, 16, 32), (2, 2), norm="BATCH"))

    def train(network: torch.nn.Module, site: int, seed: tuple[int, ...]) -> None:
        descend(network, parts[site], loss, seed)

    def dice(network: torch.nn.Module) -> float:
        with torch.no_grad():
            found = network.eval()(image[held_out]) > 0
        right = label[held_out] > 0
        return float(2 * (found & right).sum() / (found.sum() + right.sum()))

    return Task([float(size) for size in sizes], network, train, dice)


def digits_uneven() -> Task:
    """Softmax regression on scikit-learn's digits, at ten sites of 5 to 500 examples; all that is left is held out."""
    sizes = np.rint(np.geomspace(5, 500, 10)).astype(int).tolist()

    def network(seed: int) -> torch.nn.Module:
        return seeded(seed, lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)))

    return classify(sizes, network, digits(), Descent(0.5, 20, optimiser=torch.optim.SGD))


def vit() -> Task:
    """A vision transformer on the digits, at four sites."""
    return classify([100, 200, 300, 400], lambda seed: seeded(seed, Transformer), digits(), Descent(2e-3, 30))


def fine_tune() -> Task:
    """A transformer that has learned the digits, and is tuned to noisy ones with few steps of Adam at 1e-4 a round."""
    images, labels = digits()
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))

    def network(seed: int) -> torch.nn.Module:
        network = seeded(seed, Transformer)
        Descent(2e-3, 500)(network, (images[:1000], labels[:1000]), cross_entropy, (seed,))
        return network

    return classify([200, 300, 500], network, (images + 0.3 * noise, labels), Descent(1e-4, 4))


#: By name, as the table has it.
TASKS: Mapping[str, Callable[[], Task]] = {
    "SegResNet, MNI152": segresnet,
    "UNet, BatchNorm": batchnorm_unet,
    "digits, 5 to 500": digits_uneven,
    "ViT, digits": vit,
    "Adam 1e-4, fine-tune": fine_tune,
}


class Transformer(torch.nn.Module):
    """A small vision transformer: 16 patches of 2 × 2 pixels and a token of class."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches = torch.nn.Conv2d(1, width, 2, stride=2)
        self.token = torch.nn.Parameter(torch.zeros(1, 1, width))
        self.position = torch.nn.Parameter(0.02 * torch.randn(1, 17, width))
        layer = torch.nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.encoder = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = torch.nn.Sequential(torch.nn.LayerNorm(width), torch.nn.Linear(width, 10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(images), -1, -1), patches], 1) + self.position
        return self.head(self.encoder(tokens)[:, 0])


def digits() -> Examples:
    """Return all 1797 digits in a fixed order, of shape (1, 8, 8) with values from 0 to 1."""
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    images = torch.from_numpy((pixels[order] / 16).astype(np.float32)).reshape(-1, 1, 8, 8)
    return images, torch.from_numpy(labels[order])


@dataclass(frozen=True)
class Descent:
    """Some steps on random batches, with an optimiser that begins anew each time."""

    rate: float
    steps: int
    batch: int = 32
    optimiser: type[torch.optim.Optimizer] = torch.optim.Adam

    def __call__(self, network: torch.nn.Module, examples: Examples, loss: Loss, seed: tuple[int, ...]) -> None:
        inputs, labels = examples
        draw = np.random.default_rng(seed)
        optimiser = self.optimiser(network.parameters(), self.rate)
        network.train()
        for _ in range(self.steps):
            chosen = torch.from_numpy(draw.choice(len(labels), min(self.batch, len(labels)), replace=False))
            optimiser.zero_grad()
            loss(network(inputs[chosen]), labels[chosen]).backward()
            optimiser.step()


def classify(
    sizes: Sequence[int], network: Callable[[int], torch.nn.Module], examples: Examples, descend: Descent
) -> Task:
    """Return a task whose sites have the first examples, as many as `sizes` says, and whose metric is accuracy."""
    cuts = [*sizes, len(examples[1]) - sum(sizes)]
    *parts, held_out = zip(*(each.split(cuts) for each in examples), strict=True)

    def train(network: torch.nn.Module, site: int, seed: tuple[int, ...]) -> None:
        descend(network, parts[site], cross_entropy, seed)

    def accuracy(network: torch.nn.Module) -> float:
        with torch.no_grad():
            return float((network.eval()(held_out[0]).argmax(1) == held_out[1]).float().mean())

    return Task([float(size) for size in sizes], network, train, accuracy)


def seeded(seed: int, make: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    """Make a network under a seed, and leave torch's generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()
