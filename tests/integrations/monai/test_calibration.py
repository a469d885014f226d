"""The handler where each round begins with a calibration: real trainers, a BatchNorm UNet, sessions with a server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer
from monai.networks.nets import UNet
from provisioned import Federation as Provisioned
from toy_transport import ToyLink, ToyServer

import secagg
from secagg.errors import ConfigError, QuorumError
from secagg.integrations.monai import SecAggHandler
from secagg.server import Federation, Limits
from secagg.site import GlobalModel, Session
from secagg.trust import load_server_kit, load_site_kit

pytestmark = pytest.mark.usefixtures("one_thread")

WEIGHTS = {"a": 3, "b": 500}
ROUNDS = 3


def network() -> UNet:
    torch.manual_seed(0)
    return UNet(
        spatial_dims=2, in_channels=1, out_channels=2, channels=(16, 32), strides=(2,), num_res_units=1, norm="batch"
    )


def images(seed: int, count: int) -> torch.Tensor:
    """Of 0 … 0.04: the variances of BatchNorm go from 1 to 1e-5, which no fixed bound suits."""
    return 0.04 * torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(seed)) ** 2


def trainer_of(net: torch.nn.Module, seed: int) -> SupervisedTrainer:
    data = [{"image": image, "label": (image[0] > 0.01).long()} for image in images(seed, 8)]
    return SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=DataLoader(Dataset(data), batch_size=2),
        network=net,
        optimizer=torch.optim.Adam(net.parameters(), 1e-3),
        loss_function=torch.nn.functional.cross_entropy,
    )


@pytest.fixture(scope="module")
def provisioned(tmp_path_factory: pytest.TempPathFactory) -> Provisioned:
    aggregation = {"min_clients": 2, "max_clients": 3}
    return Provisioned.make(tmp_path_factory.mktemp("kits"), hosts=[], sites=list(WEIGHTS), aggregation=aggregation)


@pytest.fixture
def server(provisioned: Provisioned, tmp_path: Path) -> Iterator[ToyServer]:
    kit = load_server_kit(provisioned["server"])
    limits = Limits(idle_seconds=60.0)
    federation = Federation(
        kit.config,
        kit.key,
        tmp_path / "run",
        round_timeout=60,
        project=kit.project,
        identity=kit.identity,
        limits=limits,
    )
    with ToyServer(federation) as server:
        yield server


def take_part(
    server: ToyServer, folder: Path, scratch: Path, net: torch.nn.Module, rounds: int = ROUNDS
) -> tuple[GlobalModel, list[dict[str, torch.Tensor]]]:
    """The loop of docs/own-task.md; returns what came out of training, too."""
    kit = load_site_kit(folder)
    local = []
    model = GlobalModel(secagg.Client.load(kit), net)
    session = Session(ToyLink(server, (folder / "tls.crt").read_bytes()), kit.name, timeout=60, project=kit.project)
    session.join()

    def calibrate(update: secagg.Update) -> secagg.Update:
        return session.calibrate(update, scratch / f"{kit.name}.scales")

    handler = SecAggHandler(model, weight=WEIGHTS[kit.name], calibrate=calibrate)
    while model.round < rounds:
        trainer = trainer_of(net, 10 * model.round + WEIGHTS[kit.name])
        handler.attach(trainer)
        trainer.run()
        assert handler.update is not None
        local.append({name: value.clone() for name, value in net.state_dict().items()})
        with session.exchange(handler.update, scratch / f"{kit.name}.aggregate") as aggregate:
            model.apply(aggregate, session.receipt(model.round))
    return model, local


def test_rounds_of_trainers(server: ToyServer, provisioned: Provisioned, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(take_part, server, provisioned[name], tmp_path, network()) for name in WEIGHTS]
        (one, trained_one), (two, trained_two) = (future.result(300) for future in futures)
    total = sum(WEIGHTS.values())
    for name, value in one.state.items():
        if not value.is_floating_point():
            continue
        assert torch.equal(value, two.state[name])
        exact = (WEIGHTS["a"] * trained_one[-1][name].double() + WEIGHTS["b"] * trained_two[-1][name].double()) / total
        moved = (trained_two[-1][name].double() - network().state_dict()[name].double()).norm()
        assert (value.double() - exact).norm() <= 0.05 * moved  # of which the carry of the round before is the most
        if name.endswith("running_var"):
            assert (value >= 0).all()
            torch.testing.assert_close(value.double(), exact, rtol=0.01, atol=1e-6)
    net = network()
    two.load(net)
    net.eval()
    assert torch.isfinite(net(images(99, 4))).all()


def model_of(config: secagg.Config) -> GlobalModel:
    return GlobalModel(secagg.Client(config, secagg.generate_keys(config).client, "a"), network())


def test_how_to_calibrate_is_asked_for_before_training(provisioned: Provisioned) -> None:
    model = GlobalModel(secagg.Client.load(provisioned["a"]), network())
    with pytest.raises(ConfigError, match=r"calibrate=lambda update: session.calibrate\(update, "):
        SecAggHandler(model, weight=3)


@pytest.mark.parametrize("aggregation", [{"precision": "previous"}, {"max_abs": 8.0, "max_weight": 10}])
def test_what_has_no_calibration_never_asks_for_one(aggregation: dict[str, Any]) -> None:
    he = {"lib": "flashe", "config": {"scheme": "FLASHE", "value_bits": 8}}
    model = model_of(secagg.Config.from_dict({"he": he, "aggregation": {"max_clients": 3, **aggregation}}))

    def never(update: secagg.Update) -> secagg.Update:
        raise AssertionError("there is nothing to calibrate")

    for calibrate in (None, never):
        handler, trainer = SecAggHandler(model, weight=3, calibrate=calibrate), trainer_of(network(), 0)
        handler.attach(trainer)
        trainer.run()
        assert handler.update is not None


def test_a_calibration_that_fails_makes_no_update(provisioned: Provisioned, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was trained is there, and can be completed later."""
    model = GlobalModel(secagg.Client.load(provisioned["a"]), network())

    def fails(update: secagg.Update) -> secagg.Update:
        assert (update.header.kind, update.header.site) == ("calibration", "a")
        raise QuorumError("nobody else")

    handler, trainer = SecAggHandler(model, weight=3, calibrate=fails), trainer_of(network(), 0)
    handler.attach(trainer)
    with pytest.raises(QuorumError, match="nobody else"):
        trainer.run()
    assert handler.update is None
    assert model.round == 0
    with pytest.raises(QuorumError, match="nobody else"):
        handler.complete(trainer)
    kit = load_server_kit(provisioned["server"])
    aggregator = secagg.Aggregator(
        kit.config, kit.key, round=0, base=model.base, kind="calibration", project=kit.project
    )
    other = GlobalModel(secagg.Client.load(provisioned["b"]), network())
    aggregator.add(other.calibrate(network(), 1.0))

    def comes(update: secagg.Update) -> secagg.Update:
        aggregator.add(update)
        return secagg.Update.from_bytes(aggregator.finish().to_bytes())

    monkeypatch.setattr(handler, "_calibrate", comes)
    handler.complete(trainer)
    update: secagg.Update | None = handler.update
    assert update is not None
    assert (update.header.kind, update.header.site) == ("update", "a")


def test_a_site_that_is_late(provisioned: Provisioned, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The round times out while one trainer waits in its last event: it has an update all the same."""
    kit = load_server_kit(provisioned["server"])
    federation = Federation(
        kit.config, kit.key, tmp_path / "run", round_timeout=5, project=kit.project, identity=kit.identity
    )
    with ToyServer(federation) as server, ThreadPoolExecutor(2) as pool:
        first = pool.submit(take_part, server, provisioned["a"], tmp_path, network(), 1)
        deadline = time.monotonic() + 60
        while "waiting again for the calibrations of others" not in caplog.text:
            assert time.monotonic() < deadline
            assert not first.done() or first.result()
            time.sleep(0.05)
        second = pool.submit(take_part, server, provisioned["b"], tmp_path, network(), 1)
        assert first.result(300)[0].base == second.result(300)[0].base
