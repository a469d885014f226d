"""Engines that train two networks, or none: an error says what to do, and that works."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from ignite.engine import Engine
from monai.data import DataLoader, Dataset
from monai.engines import AdversarialTrainer, GanTrainer, Trainer
from monai_sites import Sites, make_network, snapshot

from secagg.errors import LayoutError
from secagg.integrations.monai import SecAggHandler
from secagg.site import network_state

pytestmark = pytest.mark.usefixtures("one_thread")

SITES = Sites.make()
CPU = torch.device("cpu")


def two_networks() -> torch.nn.ModuleDict:
    torch.manual_seed(0)
    return torch.nn.ModuleDict({"g": torch.nn.Linear(2, 1), "d": torch.nn.Linear(1, 1)})


def gan(both: torch.nn.ModuleDict, handler: SecAggHandler) -> Trainer:
    return GanTrainer(
        CPU,
        1,
        DataLoader(Dataset([torch.rand(1) for _ in range(4)]), batch_size=2),
        both["g"],
        torch.optim.SGD(both["g"].parameters(), 0.05),
        lambda fake: -both["d"](fake).mean(),
        both["d"],
        torch.optim.SGD(both["d"].parameters(), 0.05),
        lambda fake, real: (both["d"](fake) - both["d"](real)).mean(),
        latent_shape=2,
        d_prepare_batch=lambda batch, *where: batch,
        train_handlers=[handler],
    )


def adversarial(both: torch.nn.ModuleDict, handler: SecAggHandler) -> Trainer:
    data = [{"image": torch.rand(2), "label": torch.rand(1)} for _ in range(4)]
    return AdversarialTrainer(
        CPU,
        1,
        DataLoader(Dataset(data), batch_size=2),
        both["g"],
        torch.optim.SGD(both["g"].parameters(), 0.05),
        lambda logits: -logits.mean(),
        torch.nn.MSELoss(),
        both["d"],
        torch.optim.SGD(both["d"].parameters(), 0.05),
        lambda real, fake: (fake - real).mean(),
        d_inferer=lambda images, network: network(images[:, :1]),
        train_handlers=[handler],
    )


@pytest.mark.parametrize("make", [gan, adversarial])
def test_an_engine_of_two_networks(make: Callable[[torch.nn.ModuleDict, SecAggHandler], Trainer]) -> None:
    """What the error says to do is done, over two rounds."""
    networks = {name: two_networks() for name in ("site-1", "site-2")}
    handlers = {name: SITES.handler(both, name) for name, both in networks.items()}
    before = snapshot(networks["site-1"].state_dict())
    with pytest.raises(LayoutError, match=r"Trainer has no attribute network: set it .*ModuleDict\(\{'g': g_network"):
        make(networks["site-1"], handlers["site-1"]).run()
    for round in range(2):
        for name, both in networks.items():
            trainer = make(both, handlers[name])
            trainer.network = both
            trainer.run()
            sent = handlers[name].model.difference(both)
            assert list(sent) == list(before)
            moved = {name for name, value in sent.items() if float(value.abs().max()) > 0}
            assert moved >= {"g.weight", "g.bias", "d.weight"}
        result = SITES.aggregate(*(handler.update for handler in handlers.values()), round=round)
        for handler in handlers.values():
            handler.apply(result)
    one, two = (network_state(both) for both in networks.values())
    for name, value in one.items():
        assert torch.equal(value, two[name])
        assert torch.equal(value, before[name]) == (name == "d.bias")  # no gradient: fake − real


def test_an_engine_without_a_network() -> None:
    engine = Engine(lambda engine, batch: None)
    SITES.handler(make_network()).attach(engine)
    with pytest.raises(LayoutError, match=r"Engine has no attribute network: set it .* torch\.nn\.ModuleDict"):
        engine.run([0])


def test_an_engine_whose_network_is_none() -> None:
    engine = Engine(lambda engine, batch: None)
    engine.network = [make_network()]  # type: ignore[attr-defined]
    SITES.handler(make_network()).attach(engine)
    with pytest.raises(LayoutError, match=r"a network is needed, a torch\.nn\.Module; got list"):
        engine.run([0])
