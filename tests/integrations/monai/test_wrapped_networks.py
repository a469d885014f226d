"""Sites that wrap their networks, each in another way, and sites that do not are one federation."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer
from monai.networks.nets import DynUNet, SegResNet, UNet
from torch.optim.swa_utils import AveragedModel

import secagg
from secagg.integrations.monai import SecAggHandler
from secagg.site import GlobalModel, load_network, network_state

pytestmark = pytest.mark.usefixtures("one_thread", "group")

Make = Callable[[], torch.nn.Module]
Wrap = Callable[[torch.nn.Module], torch.nn.Module]

# Rounding to the nearest: a federation gives the same model again.
CONFIG = secagg.Config.from_dict(
    {
        "he": {"lib": "flashe", "config": {"value_bits": 16, "rounding": "nearest"}},
        "aggregation": {"min_clients": 3, "max_clients": 12, "max_abs": 1, "max_weight": 10},
    }
)
KEYS = secagg.generate_keys(CONFIG)


@pytest.fixture(scope="module")
def group() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def plain(network: torch.nn.Module) -> torch.nn.Module:
    return network


def compiled(network: torch.nn.Module) -> torch.nn.Module:
    return torch.compile(network, backend="eager")  # type: ignore[return-value]


def compiled_inside(network: torch.nn.Module) -> torch.nn.Module:
    name, child = next(iter(network.named_children()))
    setattr(network, name, compiled(child))
    return network


def compiled_in_place(network: torch.nn.Module) -> torch.nn.Module:
    network.compile(backend="eager")
    return network


WRAPPERS: dict[str, Wrap] = {
    "plain": plain,
    "distributed": torch.nn.parallel.DistributedDataParallel,
    "compiled": compiled,
    "compiled-inside": compiled_inside,
    "compiled-in-place": compiled_in_place,
    "data-parallel": torch.nn.DataParallel,
    "averaged": AveragedModel,
    "data-parallel-of-compiled": lambda network: torch.nn.DataParallel(compiled(network)),
    "distributed-of-compiled": lambda network: torch.nn.parallel.DistributedDataParallel(compiled(network)),
    "averaged-data-parallel-of-compiled": lambda network: AveragedModel(torch.nn.DataParallel(compiled(network))),
    "trainer-compiles": plain,
}


def loss(prediction: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    if prediction.dim() > label.dim():  # of each output under deep supervision
        return torch.stack([loss(output, label) for output in prediction.unbind(1)]).sum()
    return torch.nn.functional.mse_loss(prediction, label)


def train(network: torch.nn.Module, seed: int, handler: SecAggHandler, **options: object) -> None:
    draw = torch.Generator().manual_seed(seed)
    data = [{key: torch.rand(1, 16, 16, generator=draw) for key in ("image", "label")} for _ in range(2)]
    SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=DataLoader(Dataset(data), batch_size=2),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), 0.05),
        loss_function=loss,
        train_handlers=[handler],
        **options,
    ).run()


def federate(make: Make, wrappers: dict[str, str], rounds: int = 2) -> dict[str, dict[str, torch.Tensor]]:
    """Train a federation, and return what the network of each site holds in the end."""
    networks, handlers = {}, {}
    for name, wrapper in wrappers.items():
        torch.manual_seed(0)
        networks[name] = WRAPPERS[wrapper](make())
        client = secagg.Client(CONFIG, KEYS.client, name)
        handlers[name] = SecAggHandler(GlobalModel(client, network_state(networks[name])), weight=2)
    for round in range(rounds):
        aggregator = secagg.Aggregator(CONFIG, KEYS.server, round=round)
        for seed, (name, wrapper) in enumerate(wrappers.items()):
            compiles = wrapper == "trainer-compiles"
            options = {"compile": True, "compile_kwargs": {"backend": "eager"}} if compiles else {}
            train(networks[name], 10 * round + seed, handlers[name], **options)
            update = handlers[name].update
            assert update is not None
            aggregator.add(update)
        aggregate = aggregator.finish()
        for name in wrappers:
            handlers[name].model.apply(aggregate)
            load_network(networks[name], handlers[name].model.state)
    return {name: network_state(network) for name, network in networks.items()}


def assert_one_model(states: dict[str, dict[str, torch.Tensor]], make: Make, reference: str) -> None:
    torch.manual_seed(0)
    before = make().state_dict()
    for state in states.values():
        assert list(state) == list(before)
        for name, value in state.items():
            torch.testing.assert_close(value, states[reference][name], rtol=0, atol=0)
    moved = [name for name, value in before.items() if not torch.equal(value, states[reference][name])]
    assert set(moved) >= {name for name in before if name.endswith("conv.weight") or name == "0.weight"}


def small() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 3, padding=1), torch.nn.BatchNorm2d(2), torch.nn.PReLU(), torch.nn.Conv2d(2, 1, 1)
    )


def test_all_wrappers_and_their_stacks_beside_a_plain_site() -> None:
    states = federate(small, {name: name for name in WRAPPERS})
    assert_one_model(states, small, "plain")
    without = federate(small, dict.fromkeys(WRAPPERS, "plain"))  # nor does the wrapper change what is learnt
    for name, value in states["plain"].items():
        torch.testing.assert_close(value, without["plain"][name], rtol=0, atol=0)


NETWORKS: dict[str, Make] = {
    "UNet": lambda: UNet(2, 1, 1, channels=(2, 4), strides=(2,), num_res_units=2, norm="batch"),
    "SegResNet": lambda: SegResNet(
        2, init_filters=8, in_channels=1, out_channels=1, blocks_down=(1, 1), blocks_up=(1,)
    ),
    "DynUNet": lambda: DynUNet(
        2, 1, 1, [3, 3, 3], [1, 2, 2], [2, 2], filters=[2, 4, 4], deep_supervision=True, deep_supr_num=1
    ),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_networks_of_monai(network: str) -> None:
    wrappers = ("plain", "trainer-compiles", "averaged-data-parallel-of-compiled", "distributed")
    states = federate(NETWORKS[network], {wrapper: wrapper for wrapper in wrappers}, rounds=1)
    assert_one_model(states, NETWORKS[network], "plain")
