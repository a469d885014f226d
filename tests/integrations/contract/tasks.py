"""What is trained: digits by softmax regression, in NumPy and in torch, and a SegResNet on the MNI152 brain.

One thread, float32; each site has examples of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer
from monai.networks.nets import SegResNet
from numpy.typing import NDArray
from schedule import SITES, State
from sklearn.datasets import load_digits

from secagg.demo import mni152

_STEP = 0.5
BATCHES = 2
_EDGE = 16

Digits = tuple[NDArray[np.float32], NDArray[np.int64]]


@cache
def digits(site: str) -> Digits:
    """Images and classes of one site: a stripe of all; sites have different numbers of them."""
    images, classes = load_digits(return_X_y=True)
    bounds = np.cumsum([0, 200, 500, 300, 400])
    index = SITES.index(site)
    chosen = np.random.default_rng(0).permutation(len(images))[bounds[index] : bounds[index + 1]]
    return (images[chosen] / 16).astype(np.float32), classes[chosen]


class NumpyDigits:
    """Softmax regression by hand; `steps` is a count of the site's own."""

    weights: Mapping[str, int] = {site: len(digits(site)[0]) for site in SITES}

    def initial(self) -> State:
        return first_model() | {"steps": np.array(0)}

    def train(self, site: str, round: int, state: State) -> State:
        images, classes = digits(site)
        order = np.random.default_rng([round, SITES.index(site)]).permutation(len(images))
        weight, bias = np.array(state["weight"]), np.array(state["bias"])
        for batch in np.array_split(order, BATCHES):
            error = softmax(images[batch] @ weight.T + bias)
            error[np.arange(len(batch)), classes[batch]] -= 1
            weight -= np.float32(_STEP / len(batch)) * (error.T @ images[batch])
            bias -= np.float32(_STEP / len(batch)) * error.sum(0)
        return {"weight": weight, "bias": bias, "steps": np.asarray(state["steps"] + 1)}


def first_model() -> dict[str, NDArray[np.float32]]:
    """Drawn from no random numbers of torch's, which are one for all threads."""
    weight = np.random.default_rng(0).normal(0, 0.01, (10, 64))
    return {"weight": weight.astype(np.float32), "bias": np.zeros(10, np.float32)}


def softmax(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


class TorchTask:
    """A network and its trainer, which handlers can take part in."""

    weights: Mapping[str, int]

    def network(self) -> torch.nn.Module:
        raise NotImplementedError

    def trainer(self, network: torch.nn.Module, site: str, round: int, *handlers: Any) -> SupervisedTrainer:
        raise NotImplementedError

    def initial(self) -> State:
        return self.network().state_dict()

    def train(self, site: str, round: int, state: State) -> State:
        network = self.network()
        network.load_state_dict(dict(state))
        self.trainer(network, site, round).run()
        return network.state_dict()


class DigitsNetwork(torch.nn.Sequential):
    """With a `label`, as trainers of Hugging Face give it, it returns the loss."""

    def __init__(self) -> None:
        super().__init__(torch.nn.BatchNorm1d(64), torch.nn.Linear(64, 10))
        self[1].load_state_dict({name: torch.from_numpy(value) for name, value in first_model().items()})

    def forward(self, image: torch.Tensor, label: torch.Tensor | None = None) -> Any:
        scores = super().forward(image)
        return scores if label is None else {"loss": torch.nn.functional.cross_entropy(scores, label)}


class TorchDigits(TorchTask):
    """The same, with BatchNorm: its statistics are averaged, its count is the site's own."""

    weights = NumpyDigits.weights

    def network(self) -> torch.nn.Module:
        return DigitsNetwork()

    def loader(self, site: str) -> DataLoader:
        """An epoch of a round, the same in each."""
        images, classes = digits(site)
        data = [
            {"image": torch.from_numpy(image), "label": int(label)}
            for image, label in zip(images, classes, strict=True)
        ]
        return DataLoader(Dataset(data), batch_size=-(-len(data) // BATCHES))

    def optimizer(self, network: torch.nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(network.parameters(), 0.1)

    def trainer(self, network: torch.nn.Module, site: str, round: int, *handlers: Any) -> SupervisedTrainer:
        return SupervisedTrainer(
            device=torch.device("cpu"),
            max_epochs=1,
            train_data_loader=self.loader(site),
            network=network,
            optimizer=self.optimizer(network),
            loss_function=torch.nn.CrossEntropyLoss(),
            train_handlers=list(handlers),
        )


class Brain(TorchTask):
    """White matter in two small pieces of the brain a site, by the demo's network with fewer filters."""

    weights: Mapping[str, int] = {site: 2 + index for index, site in enumerate(SITES)}

    def network(self) -> SegResNet:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return SegResNet(
                spatial_dims=3,
                init_filters=4,
                in_channels=1,
                out_channels=2,
                norm=("GROUP", {"num_groups": 2}),
                blocks_down=(1, 1),
                blocks_up=(1,),
            )

    def trainer(self, network: torch.nn.Module, site: str, round: int, *handlers: Any) -> SupervisedTrainer:
        index = SITES.index(site)
        return mni152.make_trainer(network, pieces(index), seed=(0, round, index), epochs=1, handlers=handlers)


@cache
def pieces(index: int) -> list[mni152.Patch]:
    middle = slice((mni152.EDGE - _EDGE) // 2, (mni152.EDGE + _EDGE) // 2)
    patches = mni152.site_patches(index, len(SITES))[: 2 + index]
    return [{key: value[:, middle, middle, middle].clone() for key, value in patch.items()} for patch in patches]


TASKS = {"digits": NumpyDigits, "network": TorchDigits, "brain": Brain}
