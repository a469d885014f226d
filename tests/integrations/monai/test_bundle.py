"""`federate`, whose processes docs/bundles.md shows: what a bundle does wrong, and what its handlers write."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset
from monai.engines import GanTrainer, SupervisedTrainer
from monai.handlers import CheckpointLoader, ValidationHandler
from monai_sites import METRIC, assert_equal, make_evaluator, make_network, make_trainer, snapshot
from mortal import free_port
from provisioned import Federation

from secagg.errors import ConfigError, RangeError, TransportError
from secagg.integrations.monai import federate
from secagg.integrations.monai.bundle_task import BundleTask

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    aggregation = {"min_clients": 2, "max_clients": 4, "max_abs": 1.0, "max_weight": 10}
    folder = tmp_path_factory.mktemp("federation")
    return Federation.make(folder, sites=["a", "b"], metrics=[METRIC], aggregation=aggregation)["a"]


def make_task(**options: Any) -> tuple[BundleTask, SupervisedTrainer]:
    trainer = make_trainer(make_network(), **options)
    return BundleTask(trainer, None, 4), trainer


def other_weights(path: Path) -> Path:
    """A checkpoint of another network than the global model."""
    torch.save(make_network(1).state_dict(), path)
    return path


def test_a_round_is_as_many_epochs_as_the_trainer_has_and_one_trainer_goes_on() -> None:
    task, trainer = make_task()
    trainer.state.max_epochs = 2
    task = BundleTask(trainer, None, 4)
    seen: list[tuple[float, float]] = []
    for round in range(3):
        task.train(round, lambda done, total: seen.append((done, total)))
        assert trainer.state.epoch == 2 * (round + 1)
    assert trainer.state.iteration == 3 * 2 * 4
    assert seen == [(done, 8) for _ in range(3) for done in range(1, 9)]


def test_it_trains_what_the_trainer_alone_would_train() -> None:
    task, _ = make_task()
    task.train(0)
    alone = make_trainer(make_network())
    alone.run()
    assert_equal(task.model.state_dict(), alone.network.state_dict())


def test_training_begins_from_the_global_model_whatever_a_checkpoint_loader_loads(tmp_path: Path) -> None:
    network = make_network()
    loader = CheckpointLoader(str(other_weights(tmp_path / "other.pt")), {"network": network})
    task = BundleTask(make_trainer(network, train_handlers=[loader]), None, 4)
    task.train(0)
    plain, _ = make_task()
    plain.train(0)
    assert_equal(task.model.state_dict(), plain.model.state_dict())


@pytest.mark.parametrize("event", [Events.EPOCH_STARTED, Events.ITERATION_STARTED, Events.GET_BATCH_STARTED])
def test_what_is_written_later_is_refused(event: Events) -> None:
    task, trainer = make_task()
    trainer.add_event_handler(event, lambda engine: engine.network.load_state_dict(make_network(1).state_dict()))
    with pytest.raises(ConfigError, match=r"written something else into the network.*'0\.weight'"):
        task.train(0)
    assert_equal(task.model.state_dict(), make_network(1).state_dict())  # not a step was trained


def test_the_evaluator_measures_the_global_model_whatever_its_checkpoint_loader_loads(tmp_path: Path) -> None:
    network = make_network()
    loader = CheckpointLoader(str(other_weights(tmp_path / "other.pt")), {"network": network})
    before = snapshot(network.state_dict())
    expected = BundleTask(make_trainer(network), make_evaluator(network), 4).validate()
    task = BundleTask(make_trainer(network), make_evaluator(network, val_handlers=[loader]), 4)
    assert task.validate() == expected
    assert expected[METRIC] > 0
    assert_equal(network.state_dict(), before)


def test_an_evaluator_that_changes_the_network_leaves_it_as_it_was() -> None:
    network = make_network()
    before = snapshot(network.state_dict())
    task = BundleTask(make_trainer(network), make_evaluator(network, mode="train"), 4)
    task.validate()
    assert_equal(network.state_dict(), before)


def test_validation_within_training_is_of_what_is_trained() -> None:
    network = make_network()
    evaluator = make_evaluator(network)
    trainer = make_trainer(network, train_handlers=[ValidationHandler(1, evaluator)])
    task = BundleTask(trainer, evaluator, 4)
    before = task.validate()[METRIC]
    task.train(0)
    assert evaluator.state.metrics[METRIC] != before
    plain, _ = make_task()
    plain.train(0)
    assert_equal(network.state_dict(), plain.model.state_dict())


def test_metrics_that_are_no_numbers_are_left_out_and_the_key_metric_comes_first() -> None:
    network = make_network()
    evaluator = make_evaluator(network)

    @evaluator.on(Events.COMPLETED)
    def more(engine: Engine) -> None:
        engine.state.metrics |= {"a": torch.tensor(0.5), "classes": torch.zeros(3)}

    found = BundleTask(make_trainer(network), evaluator, 4).validate()
    assert list(found) == [METRIC, "a"]
    assert found["a"] == 0.5


def test_a_trainer_that_trains_nothing_is_refused() -> None:
    task, trainer = make_task()
    trainer.add_event_handler(Events.STARTED, lambda engine: engine.terminate())
    with pytest.raises(ConfigError, match="no iteration in round 3"):
        task.train(3)


def refused(kit: Path, match: str, error: type[Exception] = ConfigError, **changes: Any) -> None:
    """`federate` refuses before training."""
    network = make_network()
    trainer = make_trainer(network)

    @trainer.on(Events.STARTED)
    def trains(engine: Engine) -> None:
        pytest.fail("it trains")

    given = {"kit": kit, "server": f"127.0.0.1:{free_port()}", "rounds": 1, "weight": 4, "timeout": 0.5}
    options = {name: value(network) if callable(value) else value for name, value in changes.items()}
    with pytest.raises(error, match=match):
        federate(**({"trainer": trainer, **given} | options))


def make_gan(network: torch.nn.Module) -> GanTrainer:
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    return GanTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=DataLoader(Dataset([0])),
        g_network=network,
        g_optimizer=optimizer,
        g_loss_function=torch.nn.MSELoss(),
        d_network=network,
        d_optimizer=optimizer,
        d_loss_function=torch.nn.MSELoss(),
    )


def without_epochs(network: torch.nn.Module) -> SupervisedTrainer:
    trainer = make_trainer(network)
    trainer.state.max_epochs = 0
    return trainer


Make = Callable[[torch.nn.Module], Any]


@pytest.mark.parametrize(
    ("match", "changes"),
    [
        ("GanTrainer, has no network", {"trainer": make_gan}),
        ("the trainer is a Engine", {"trainer": lambda network: Engine(lambda engine, batch: None)}),
        ("the trainer is a SupervisedEvaluator", {"trainer": make_evaluator}),
        ("max_epochs is 0", {"trainer": without_epochs}),
        ("the evaluator is a SupervisedTrainer", {"evaluator": make_trainer}),
        ("another network than the trainer", {"evaluator": lambda network: make_evaluator(make_network())}),
        ("another network than the trainer", {"evaluator": lambda network: make_evaluator(network[0])}),
        ("no key metric", {"evaluator": lambda network: make_evaluator(network, key_val_metric=None)}),
        (
            "'score', the first of the configuration's metrics, less is better",
            {"evaluator": lambda network: make_evaluator(network, metric_cmp_fn=lambda new, old: new < old)},
        ),
        ("weight is 0", {"weight": 0}),
        ("examples '4'", {"weight": "4"}),
        ("2.5 rounds", {"rounds": 2.5}),
        ("'3' rounds", {"rounds": "3"}),
        ("0 rounds", {"rounds": 0}),
        ("host:port", {"server": "fl.example.org"}),
        ("told by its name", {"out": "model.txt"}),
    ],
)
def test_what_a_bundle_does_wrong_is_refused_before_training(kit: Path, match: str, changes: dict[str, Any]) -> None:
    refused(kit, match, **changes)


@pytest.mark.parametrize("weight", [-1, 11])
def test_a_weight_out_of_range_is_refused(kit: Path, weight: float) -> None:
    refused(kit, "weight", RangeError, weight=weight)


def test_a_server_that_is_not_there_is_named(kit: Path) -> None:
    refused(kit, "127.0.0.1", TransportError)


def test_monai_shows_the_error_as_the_cause_of_its_own(kit: Path) -> None:
    run = {"_target_": "secagg.integrations.monai.federate", "trainer": None, "kit": str(kit)}
    parser = ConfigParser(json.loads(json.dumps({"run": [run | {"server": "localhost:1", "rounds": 1, "weight": 1}]})))
    with pytest.raises(RuntimeError, match="secagg.integrations.monai.federate") as raised:
        parser.get_parsed_content("run")
    assert isinstance(raised.value.__cause__, ConfigError)


def test_ctrl_c_ends_it_in_one_line(
    kit: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("secagg.integrations.monai.bundle.run_task", interrupted)
    with caplog.at_level("INFO"), pytest.raises(SystemExit) as raised:
        federate(make_trainer(make_network()), kit=kit, server="localhost:1", rounds=1, weight=4)
    assert raised.value.code == 130
    assert caplog.messages[-1] == "interrupted; the same command goes on"
