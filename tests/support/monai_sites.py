"""Sites of a federation whose trainers are MONAI's: a small network, a trainer on noise, a round without server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from ignite.metrics import MeanAbsoluteError
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer

import secagg
from secagg.integrations.monai import SecAggHandler
from secagg.site import GlobalModel, network_state
from secagg.trust.key import KeyPair

State = dict[str, torch.Tensor]

#: What `make_evaluator` measures.
METRIC = "score"

#: Sums are exact, and rounding is to the nearest: the same differences give the same mean.
EXACT = {"lib": "flashe", "config": {"value_bits": 16, "rounding": "nearest"}}


def make_network(seed: int = 0) -> torch.nn.Module:
    """A network with weights, running statistics and an integer buffer."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.BatchNorm3d(4), torch.nn.ReLU(), torch.nn.Conv3d(4, 1, 1)
    )


def make_trainer(
    network: torch.nn.Module, seed: int = 0, examples: int = 4, device: str = "cpu", **options: Any
) -> SupervisedTrainer:
    """Train on noise: as many iterations as examples."""
    draw = torch.Generator().manual_seed(seed)
    dtype = next(network.parameters()).dtype
    data = [
        {
            "image": torch.randn(1, 4, 4, 4, generator=draw).to(dtype),
            "label": torch.randn(1, 4, 4, 4, generator=draw).to(dtype),
        }
        for _ in range(examples)
    ]
    settings = {
        "device": torch.device(device),
        "max_epochs": 1,
        "train_data_loader": DataLoader(Dataset(data), batch_size=1),
        "network": network,
        "loss_function": torch.nn.MSELoss(),
    }
    if "optimizer" not in options:
        settings["optimizer"] = torch.optim.SGD(network.parameters(), 0.05)
    return SupervisedTrainer(**settings, **options)


def make_evaluator(network: torch.nn.Module, **options: Any) -> SupervisedEvaluator:
    metric = MeanAbsoluteError(lambda output: (output[0]["pred"], output[0]["label"]))
    options = {"key_val_metric": {METRIC: metric}} | options
    data = [{"image": torch.ones(1, 4, 4, 4), "label": torch.zeros(1, 4, 4, 4)}]
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(data), batch_size=1),
        network=network,
        **options,
    )


def snapshot(state: Mapping[str, torch.Tensor]) -> State:
    return {name: value.clone() for name, value in state.items()}


def assert_equal(state: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> None:
    assert list(state) == list(other)
    for name, value in state.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=0)


@dataclass(frozen=True)
class Sites:
    """A federation under one configuration."""

    config: secagg.Config
    keys: KeyPair

    @classmethod
    def make(cls, he: Mapping[str, Any] = EXACT, max_abs: float | None = 1.0, **more: Any) -> Sites:
        """Without `max_abs`, scales are measured in each round."""
        aggregation = {"min_clients": 2, "max_clients": 4}
        if max_abs is not None:
            aggregation |= {"max_abs": max_abs, "max_weight": 10}
        config = secagg.Config.from_dict({"he": dict(he), "aggregation": aggregation, **more})
        return cls(config, secagg.generate_keys(config))

    def model(self, network: torch.nn.Module, name: str = "site-1") -> GlobalModel:
        return GlobalModel(secagg.Client(self.config, self.keys.client, name), network_state(network))

    def handler(self, network: torch.nn.Module, name: str = "site-1", **options: Any) -> SecAggHandler:
        return SecAggHandler(self.model(network, name), weight=2, **options)

    def aggregate(self, *updates: secagg.Update | None, round: int = 0) -> secagg.Update:
        aggregator = secagg.Aggregator(self.config, self.keys.server, round=round)
        for update in updates:
            assert update is not None
            aggregator.add(update)
        return aggregator.finish()
