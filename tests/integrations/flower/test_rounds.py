"""Runs of Flower whose models are encrypted: they learn what unencrypted ones learn, and the server reads none."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flower_grid import ToyGrid
from flower_nodes import DIGITS, FIRST, METERED, Stepper, digits_app, federate, grid_of, to_record
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, FedProx, Result
from provisioned import Federation

import secagg
from secagg.integrations.flower import SecAggStrategy, secagg_mod

ENVELOPE_NBYTES = 1500  # what Flower adds to a reply with two records, whatever its size


def updates(grid: ToyGrid) -> Iterator[tuple[secagg.Update, Message, int]]:
    """What nodes have sent after training: the update, the reply, and all its bytes."""
    for reply, nbytes in grid.replied:
        if reply.metadata.message_type == "train" and reply.has_content():
            yield secagg.Update.from_bytes(reply.content["arrays"]["update"].data), reply, nbytes


def test_as_accurate_as_unencrypted(federation: Federation) -> None:
    def run(strategy: FedAvg | SecAggStrategy, mods: list) -> tuple[Result, ToyGrid]:
        grid = grid_of(federation, [digits_app(node, 10, mods) for node in range(10)])
        gc.collect()
        gc.disable()  # a reply must not need it to be freed
        result = strategy.start(grid, to_record(DIGITS), 5)
        return result, grid

    plain, everything = run(FedAvg(), [])
    encrypted, grid = run(SecAggStrategy(FedAvg(), federation["server"]), [secagg_mod])
    accuracies = [record["accuracy"] for record in plain.evaluate_metrics_clientapp.values()]
    assert [record["accuracy"] for record in encrypted.evaluate_metrics_clientapp.values()] == pytest.approx(
        accuracies, abs=1e-12
    )
    assert accuracies[-1] > accuracies[0] + 0.03
    assert everything.most_held >= 10
    assert (grid.most_held, grid.held) == (1, 0)

    sent = list(updates(grid))
    assert len(sent) == 50
    for update, reply, nbytes in sent:
        assert reply.content["metrics"] == MetricRecord({"num-examples": 1})
        stored = sum(len(array.data) for name, array in reply.content["arrays"].items() if name == "model")
        assert update.nbytes < nbytes - stored < 1.01 * update.nbytes + ENVELOPE_NBYTES
    assert encrypted.arrays["aggregate"].stype == "secagg"
    assert secagg.Update.from_bytes(encrypted.arrays["aggregate"].data).header.round == 4


def test_what_is_in_the_clear(federation: Federation) -> None:
    """The first model, once to each node; nothing of a trained one, nor who has how many examples."""
    grid = grid_of(federation, [Stepper(step) for step in (1, 2, 3)])
    SecAggStrategy(FedAvg(), federation["server"]).start(grid, to_record(FIRST), 3)
    sent = [array.stype for message, _ in grid.sent for record in arrays_of(message) for array in record.values()]
    assert sent.count("numpy.ndarray") == 3 * len(FIRST)
    replied = [array.stype for message, _ in grid.replied for record in arrays_of(message) for array in record.values()]
    assert set(replied) == {"secagg"}
    weights = [message.content["metrics"]["num-examples"] for message, _ in grid.replied]
    assert weights == [1] * (3 + 3) * 3


def arrays_of(message: Message) -> list[ArrayRecord]:
    return [record for record in message.content.values() if isinstance(record, ArrayRecord)]


def test_each_aggregate_counts_once(federation: Federation) -> None:
    """What is evaluated is what is trained next; own integers stay, whatever others count."""
    nodes = [Stepper(step) for step in (1, 2, 3)]
    SecAggStrategy(FedAvg(), federation["server"]).start(grid_of(federation, nodes), to_record(FIRST), 3)
    mean = (1 * 10 + 2 * 20 + 3 * 30) / 60
    for node in nodes:
        assert len(node.trained) == len(node.evaluated) == 3
        for round, model in enumerate(node.evaluated, 1):
            np.testing.assert_allclose(model["w"], FIRST["w"] + round * mean, atol=1e-4)
            np.testing.assert_allclose(model["scale"], 1 + round * mean, atol=1e-4)
            assert model["count"] == round * node.step
            assert (model["w"].dtype, model["scale"].dtype, model["count"].dtype) == ("f4", "f8", "i8")
            assert np.array_equal(model["w"], nodes[0].evaluated[round - 1]["w"])
        for evaluated, trained in zip(node.evaluated, node.trained[1:], strict=False):
            assert all(np.array_equal(evaluated[name], trained[name]) for name in FIRST)


@pytest.mark.parametrize("fraction_evaluate", [0.2, 1.0])
def test_nodes_miss_rounds(federation: Federation, fraction_evaluate: float) -> None:
    random.seed(fraction_evaluate)  # FedAvg samples
    nodes = [Stepper(step) for step in (1, 2, 3, 4, 5, 6)]
    grid = grid_of(federation, nodes)
    inner = FedAvg(fraction_train=0.5, fraction_evaluate=fraction_evaluate)
    SecAggStrategy(inner, federation["server"]).start(grid, to_record(FIRST), 8)
    assert not any(reply.has_error() for reply, _ in grid.replied)
    assert sum("model" in reply.content["arrays"] for _, reply, _ in updates(grid)) >= 4
    handed = [message.content["secagg-blobs"] for message, _ in grid.sent]
    assert any("model" in blobs for blobs in handed) == (fraction_evaluate < 1)  # or nobody is late
    assert max(map(len, handed)) <= 4  # not all eight aggregates
    assert all(node.trained[-1]["count"] == node.step * (len(node.trained) - 1) for node in nodes if node.trained)
    last = [node.evaluated[-1]["w"] for node in nodes if node.evaluated]
    assert len(last) == 6 or fraction_evaluate < 1
    newest = max(last, key=lambda w: float(w.sum()))  # each round adds to all
    assert sum(np.array_equal(newest, other) for other in last) >= max(2, round(6 * fraction_evaluate))


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_node_restarts(federation: Federation, kind: str) -> None:
    """Its state is lost, before training or just after: it says so, is sent all, and goes on."""
    nodes = [Stepper(step) for step in (1, 2, 3)]

    def forgets(message: Message, context: Context) -> Message:
        if (message.metadata.message_type, message.content["config"]["server-round"]) == (kind, 3):
            context.state = RecordDict()
        return nodes[0](message, context)

    grid = grid_of(federation, [forgets, *nodes[1:]])
    SecAggStrategy(FedAvg(), federation["server"]).start(grid, to_record(FIRST), 4)
    failed = [reply for reply, _ in grid.replied if reply.has_error()]
    assert [reply.metadata.src_node_id for reply in failed] == [100]
    assert "has no global model, as after a restart" in str(failed[0].error.reason)
    assert (len(nodes[0].trained), len(nodes[0].evaluated)) == ((3, 4) if kind == "train" else (4, 3))
    assert all(np.array_equal(node.evaluated[-1]["w"], nodes[0].evaluated[-1]["w"]) for node in nodes)
    assert nodes[0].evaluated[-1]["count"] == 1 * 1  # its own count was lost too


def test_one_node_never_answers(federation: Federation) -> None:
    nodes = [Stepper(step) for step in (1, 2, 3)]
    grid = grid_of(federation, nodes, silent={101})
    SecAggStrategy(FedAvg(), federation["server"]).start(grid, to_record(FIRST), 2, timeout=0.3)
    np.testing.assert_allclose(nodes[0].evaluated[-1]["w"], FIRST["w"] + 2 * (10 + 90) / 40, atol=1e-4)


@pytest.mark.parametrize("names", [[], ["loss", "accuracy"]])
def test_metrics(tmp_path: Path, names: list[str]) -> None:
    """In the clear, each node counts alike; encrypted, by its examples, and when the next sum confirms them."""
    federation = federate(tmp_path, 3, **({"aggregation": {"max_abs": METERED}} if names else {}))
    grid = grid_of(federation, [Stepper(step) for step in (1, 2, 3)])
    strategy = SecAggStrategy(FedAvg(), federation["server"], metrics=names)
    result = strategy.start(grid, to_record(FIRST), 4)
    losses = {round: dict(record) for round, record in result.train_metrics_clientapp.items()}
    accuracies = {round: dict(record) for round, record in result.evaluate_metrics_clientapp.items()}
    if not names:
        assert losses == {round: {"loss": pytest.approx(2 / 4)} for round in (1, 2, 3, 4)}
        assert accuracies == {round: {"accuracy": pytest.approx(2 / 8)} for round in (1, 2, 3, 4)}
        return
    mean = (1 * 1 + 2 * 2 + 3 * 3) / 6
    assert losses == {1: {}, 2: {}} | {round: {"loss": pytest.approx(mean / 4, rel=1e-3)} for round in (3, 4)}
    assert accuracies == {1: {}, 2: {}} | {round: {"accuracy": pytest.approx(mean / 8, rel=1e-3)} for round in (3, 4)}
    told = {value for reply, _ in grid.replied for name, value in reply.content["metrics"].items() if name in names}
    assert len(told) == 2


def test_a_metric_that_no_app_has(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A name that was misspelt: the app's own goes in the clear, and that must be said."""
    federation = federate(tmp_path, 2, aggregation={"max_abs": METERED})
    grid = grid_of(federation, [Stepper(1), Stepper(2)])
    result = SecAggStrategy(FedAvg(), federation["server"], metrics=["los"]).start(grid, to_record(FIRST), 2)
    assert set(result.train_metrics_clientapp[2]) == {"loss"}
    assert caplog.text.count("the app has no metric los; in the clear it tells ['loss']") == 2


def test_metrics_of_an_older_model(tmp_path: Path) -> None:
    """What a node has found before it missed a round does not count for a later model: then there is no mean."""
    federation = federate(tmp_path, 3, aggregation={"max_abs": METERED})
    nodes = [Stepper(step) for step in (1, 2, 3)]

    def misses(message: Message, context: Context) -> Message:
        reply = nodes[0](message, context) if message.content["config"]["server-round"] != 2 else None
        if reply is None:
            raise ValueError("busy")
        return reply

    strategy = SecAggStrategy(FedAvg(), federation["server"], metrics=["accuracy"])
    result = strategy.start(grid_of(federation, [misses, *nodes[1:]]), to_record(FIRST), 5)
    means = {round: record.get("accuracy") for round, record in result.evaluate_metrics_clientapp.items()}
    two, three = (2 * 2 + 3 * 3) / 5 / 8, (1 + 2 * 2 + 3 * 3) / 6 / 8
    two, three = (pytest.approx(mean, rel=1e-3) for mean in (two, three))
    assert means == {1: None, 2: None, 3: two, 4: None, 5: three}


def test_one_exchange_calibration(tmp_path: Path) -> None:
    """The scales of a round follow from the round before (precision: previous); the first round measures."""
    federation = federate(tmp_path, 3, aggregation={"precision": "previous", "max_abs": None})
    nodes = [Stepper(step) for step in (1, 2, 3)]
    SecAggStrategy(FedAvg(), federation["server"]).start(grid_of(federation, nodes), to_record(FIRST), 4)
    assert np.array_equal(nodes[0].evaluated[0]["w"], FIRST["w"])
    after = nodes[0].evaluated[3]["w"] - FIRST["w"]
    assert (after > 3 * 14 / 6 - 0.1).all()
    assert all(np.array_equal(node.evaluated[3]["w"], nodes[0].evaluated[3]["w"]) for node in nodes)


def test_what_the_wrapped_strategy_sends_arrives(federation: Federation) -> None:
    nodes = [Stepper(1), Stepper(2)]
    strategy = SecAggStrategy(FedProx(proximal_mu=0.5), federation["server"])
    strategy.start(grid_of(federation, nodes), to_record(FIRST), 2, train_config=ConfigRecord({"lr": 0.1}))
    assert nodes[0].configs == [{"lr": 0.1, "proximal-mu": 0.5, "server-round": round} for round in (1, 2)]


def test_two_runs_of_a_strategy(federation: Federation) -> None:
    """In one run of Flower's, so that nodes have kept what belongs to the former."""
    nodes = [Stepper(1), Stepper(2)]
    grid, strategy = grid_of(federation, nodes), SecAggStrategy(FedAvg(), federation["server"])
    for _ in range(2):
        strategy.start(grid, to_record(FIRST), 2)
    assert not any(reply.has_error() for reply, _ in grid.replied)
    assert np.array_equal(nodes[0].evaluated[1]["w"], nodes[1].evaluated[3]["w"])
    (again,) = grid.send_and_receive([next(message for message, _ in grid.sent)])  # all that the former begins with
    assert "has left the run for a later one" in str(again.error.reason)


def test_queries_pass(federation: Federation) -> None:
    grid = grid_of(federation, [Stepper(1)])
    asked = RecordDict({"arrays": to_record(FIRST)})
    (reply,) = grid.send_and_receive([Message(asked, dst_node_id=100, message_type="query")])
    assert reply.content == asked


def test_last_aggregate_that_reaches_nobody(federation: Federation, caplog: pytest.LogCaptureFixture) -> None:
    grid = grid_of(federation, [Stepper(1), Stepper(2)])
    SecAggStrategy(FedAvg(fraction_evaluate=0.0), federation["server"]).start(grid, to_record(FIRST), 1)
    assert "no node gets the last aggregate" in caplog.text
