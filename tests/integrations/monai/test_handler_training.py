"""Ways in which trainers train: with the handler they give what they give in a plain loop, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from devices import DEVICES
from ignite.engine import Events
from ignite.handlers import EarlyStopping, EMAHandler
from monai.engines import SupervisedTrainer
from monai.inferers import SimpleInferer
from monai_sites import Sites, State, assert_equal, make_network, make_trainer, snapshot
from torch.optim.swa_utils import AveragedModel

import secagg
from secagg.integrations.monai import SecAggHandler
from secagg.site import GlobalModel, network_state

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # SupervisedTrainer(amp=True) makes autocast and scaler of CUDA, which say where there is none that they do nothing
    pytest.mark.filterwarnings(
        r"ignore:.*(CUDA is not available|`torch\.cuda\.amp\.GradScaler\(args\.\.\.\)` is deprecated)"
    ),
]

SITES = Sites.make()
NAMES = ("site-1", "site-2")
ROUNDS = 3

#: Makes the trainer of a round, given the network, the round, what the site keeps over all of them, and handlers.
Way = Callable[[torch.nn.Module, int, dict[str, Any], list[Any]], SupervisedTrainer]


def seed(round: int, kept: dict[str, Any]) -> int:
    """Of a site's examples."""
    return 10 * round + kept["number"]


def new_trainer(net: torch.nn.Module, round: int, kept: dict[str, Any], handlers: list[Any]) -> SupervisedTrainer:
    return make_trainer(net, seed(round, kept), train_handlers=handlers)


def one_trainer(net: torch.nn.Module, round: int, kept: dict[str, Any], handlers: list[Any]) -> SupervisedTrainer:
    if "trainer" not in kept:
        kept["trainer"] = make_trainer(net, kept["number"], train_handlers=handlers)
    return kept["trainer"]


def more_epochs(net: torch.nn.Module, round: int, kept: dict[str, Any], handlers: list[Any]) -> SupervisedTrainer:
    trainer = one_trainer(net, round, kept, handlers)
    trainer.state.max_epochs = round + 1
    return trainer


def momentum(net: torch.nn.Module, round: int, kept: dict[str, Any], handlers: list[Any]) -> SupervisedTrainer:
    optimizer = kept.setdefault("optimizer", torch.optim.SGD(net.parameters(), 0.05, momentum=0.9))
    return make_trainer(net, seed(round, kept), optimizer=optimizer, train_handlers=handlers)


def adam(net: torch.nn.Module, round: int, kept: dict[str, Any], handlers: list[Any]) -> SupervisedTrainer:
    optimizer = kept.setdefault("optimizer", torch.optim.Adam(net.parameters(), 1e-3))
    return make_trainer(net, seed(round, kept), optimizer=optimizer, train_handlers=handlers)


def mixed_precision(net: torch.nn.Module, round: int, kept: dict[str, Any], handlers: list[Any]) -> SupervisedTrainer:
    return make_trainer(net, seed(round, kept), amp=True, train_handlers=handlers)


class Autocast(SimpleInferer):
    """What ``amp=True`` does on a GPU alone."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return super().__call__(*args, **kwargs)


def autocast(net: torch.nn.Module, round: int, kept: dict[str, Any], handlers: list[Any]) -> SupervisedTrainer:
    return make_trainer(net, seed(round, kept), inferer=Autocast(), train_handlers=handlers)


def accumulated(net: torch.nn.Module, round: int, kept: dict[str, Any], handlers: list[Any]) -> SupervisedTrainer:
    return make_trainer(net, seed(round, kept), accumulation_steps=2, train_handlers=handlers)


def compiled(net: torch.nn.Module, round: int, kept: dict[str, Any], handlers: list[Any]) -> SupervisedTrainer:
    return make_trainer(
        net, seed(round, kept), compile=True, compile_kwargs={"backend": "eager"}, train_handlers=handlers
    )


def ema(net: torch.nn.Module, round: int, kept: dict[str, Any], handlers: list[Any]) -> SupervisedTrainer:
    average = kept.setdefault("average", EMAHandler(net, momentum=0.1))
    trainer = new_trainer(net, round, kept, handlers)
    average.attach(trainer)
    return trainer


def averaged(net: torch.nn.Module, round: int, kept: dict[str, Any], handlers: list[Any]) -> SupervisedTrainer:
    average = kept.setdefault("average", AveragedModel(net))
    trainer = new_trainer(net, round, kept, handlers)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: average.update_parameters(net))
    return trainer


def early_stopping(net: torch.nn.Module, round: int, kept: dict[str, Any], handlers: list[Any]) -> SupervisedTrainer:
    """After three epochs of nine: the score is always the same."""
    trainer = new_trainer(net, round, kept, handlers)
    trainer.state.max_epochs = 9
    stop = EarlyStopping(patience=2, score_function=lambda engine: 0.0, trainer=trainer)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, stop)
    return trainer


def frozen(net: torch.nn.Module, round: int, kept: dict[str, Any], handlers: list[Any]) -> SupervisedTrainer:
    net[0].requires_grad_(False)
    return new_trainer(net, round, kept, handlers)


WAYS: list[Way] = [
    new_trainer,
    one_trainer,
    more_epochs,
    momentum,
    adam,
    mixed_precision,
    autocast,
    accumulated,
    compiled,
    ema,
    averaged,
    early_stopping,
    frozen,
]


@dataclass
class Site:
    """One that trains in some way, by the handler or without."""

    model: GlobalModel
    net: torch.nn.Module
    way: Way
    kept: dict[str, Any]

    def by_handler(self, round: int) -> secagg.Update:
        handler = self.kept.setdefault("handler", SecAggHandler(self.model, weight=2))
        self.way(self.net, round, self.kept, [handler]).run()
        assert handler.update is not None
        return handler.update

    def in_plain_loop(self, round: int) -> secagg.Update:
        trainer = self.way(self.net, round, self.kept, [])
        self.model.load(self.net)
        trainer.run()
        return self.model.encrypt(self.net, 2)


@dataclass
class Run:
    """The global model after each round, and what the sites were after the last training."""

    rounds: list[State]
    local: list[State]
    sites: list[Site]


def federate(way: Way, train: Callable[[Site, int], secagg.Update], device: str = "cpu") -> Run:
    networks = [make_network().to(device) for _ in NAMES]
    sites = [
        Site(SITES.model(net, name), net, way, {"number": number})
        for number, (name, net) in enumerate(zip(NAMES, networks, strict=True))
    ]
    rounds = []
    for round in range(ROUNDS):
        result = SITES.aggregate(*(train(site, round) for site in sites), round=round)
        for site in sites:
            site.model.apply(result)
        rounds.append(snapshot(sites[0].model.state))
        floats = {name: value for name, value in rounds[-1].items() if value.is_floating_point()}
        assert_equal(floats, {name: sites[1].model.state[name] for name in floats})
    return Run(rounds, [snapshot(network_state(net)) for net in networks], sites)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_the_same_as_the_plain_loop(way: Way) -> None:
    run, plain = federate(way, Site.by_handler), federate(way, Site.in_plain_loop)
    for found, expected in zip([*run.rounds, *run.local], [*plain.rounds, *plain.local], strict=True):
        assert_equal(found, expected)
    assert not torch.equal(run.rounds[0]["3.weight"], make_network().state_dict()["3.weight"])
    steps = 12 if way is early_stopping else 4
    assert int(run.rounds[-1]["1.num_batches_tracked"]) == ROUNDS * steps


@pytest.mark.parametrize("way", [momentum, adam])
def test_an_optimiser_goes_on_over_rounds(way: Way) -> None:
    def forgetful(net: torch.nn.Module, round: int, kept: dict[str, Any], handlers: list[Any]) -> SupervisedTrainer:
        kept.pop("optimizer", None)
        return way(net, round, kept, handlers)

    kept, forgotten = federate(way, Site.by_handler), federate(forgetful, Site.by_handler)
    assert_equal(kept.rounds[0], forgotten.rounds[0])
    assert not torch.equal(kept.rounds[1]["3.weight"], forgotten.rounds[1]["3.weight"])


@pytest.mark.parametrize("way", [ema, averaged])
def test_an_average_beside_the_network_is_not_sent(way: Way) -> None:
    """It is the site's own, and follows what is trained; the federation is the one without."""
    beside, without = federate(way, Site.by_handler), federate(new_trainer, Site.by_handler)
    assert_equal(beside.rounds[-1], without.rounds[-1])
    averages = [site.kept["average"] for site in beside.sites]
    one, two = (network_state(getattr(average, "ema_model", average)) for average in averages)
    assert not torch.equal(one["3.weight"], two["3.weight"])
    assert not torch.equal(one["3.weight"], beside.local[0]["3.weight"])


def test_frozen_layers_stay_bit_for_bit() -> None:
    run, start = federate(frozen, Site.by_handler), make_network().state_dict()
    for state in [*run.rounds, *run.local]:
        for name in ("0.weight", "0.bias"):
            assert torch.equal(state[name], start[name])
        assert not torch.equal(state["3.weight"], start["3.weight"])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("way", [new_trainer, momentum, mixed_precision], ids=lambda way: way.__name__)
def test_on_a_device(device: str, way: Way) -> None:
    """Networks stay where they are, and hold the global model in the end."""

    def there(net: torch.nn.Module, round: int, kept: dict[str, Any], handlers: list[Any]) -> SupervisedTrainer:
        trainer = way(net, round, kept, handlers)
        trainer.state.device = torch.device(device)
        return trainer

    run = federate(there, Site.by_handler, device)
    for site in run.sites:
        assert {value.device.type for value in site.net.state_dict().values()} == {device}
        site.model.load(site.net)
        assert_equal({name: value.cpu() for name, value in site.net.state_dict().items()}, site.model.state)
    assert not torch.equal(run.rounds[0]["0.weight"], make_network().state_dict()["0.weight"])
    assert not torch.equal(run.rounds[-1]["0.weight"], run.rounds[0]["0.weight"])
