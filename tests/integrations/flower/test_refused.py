"""What cannot work, or would send something in the clear, is refused: before a run if it can be, and by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flower_grid import ToyGrid
from flower_nodes import FIRST, App, Stepper, federate, grid_of, to_record
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod
from flwr.clientapp.typing import ClientAppCallable
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedMedian,
    Krum,
    Result,
)
from provisioned import Federation

from secagg.errors import ConfigError, ImplausibleSumError, KeyFileError, LayoutError, QuorumError, StateError
from secagg.integrations.flower import SecAggStrategy, secagg_mod
from secagg.site import Follower

ALL = FedAvg(min_train_nodes=3, min_available_nodes=3)


def run(federation: Federation, apps: Sequence[App], rounds: int = 1, **changes: Any) -> tuple[Result, ToyGrid]:
    grid = grid_of(federation, apps, **changes)
    return SecAggStrategy(FedAvg(), federation["server"]).start(grid, to_record(FIRST), rounds, timeout=2), grid


def reasons(grid: ToyGrid) -> list[str]:
    return [str(reply.error.reason) for reply, _ in grid.replied if reply.has_error()]


def sends_nothing(grid: ToyGrid) -> bool:
    return bool(grid.replied) and all(reply.has_error() for reply, _ in grid.replied)


class Other(FedAvg):
    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        return super().aggregate_train(server_round, replies)


def patched() -> FedAvg:
    strategy = FedAvg()
    strategy.aggregate_train = lambda *arguments: (None, None)  # type: ignore[method-assign]
    return strategy


@pytest.mark.parametrize(
    ("strategy", "name"),
    [
        (FedAdam(), "FedAdam"),
        (FedMedian(), "FedMedian"),
        (Krum(), "Krum"),
        (DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0.1, 1.0, 2), "DifferentialPrivacyServerSide"),
        (Other(), "Other"),
        (patched(), "FedAvg"),
        ("FedAvg", "str"),
    ],
)
def test_strategy_that_computes_with_models(strategy: Any, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}.* computes with models"):
        SecAggStrategy(strategy, "/kits/server")


def test_weight_by_another_name() -> None:
    with pytest.raises(ConfigError, match="weighted_by_key is 'loss'"):
        SecAggStrategy(FedAvg(weighted_by_key="loss"), "/kits/server")


def test_strategy_that_is_wrapped(federation: Federation) -> None:
    inner = SecAggStrategy(FedAvg(), federation["server"])
    outer = DifferentialPrivacyClientSideFixedClipping(inner, 0.1, 1.0, 2)
    grid = grid_of(federation, [Stepper(1), Stepper(2)])
    with pytest.raises(StateError, match="wrap it in no other strategy"):
        outer.start(grid, to_record(FIRST))
    assert not grid.sent


def test_evaluate_fn(federation: Federation) -> None:
    grid = grid_of(federation, [Stepper(1), Stepper(2)])
    with pytest.raises(ConfigError, match="evaluate_fn would get an encrypted model"):
        SecAggStrategy(FedAvg(), federation["server"]).start(
            grid, to_record(FIRST), evaluate_fn=lambda round, arrays: None
        )
    assert not grid.sent


def test_two_exchanges_a_round(tmp_path: Path) -> None:
    federation = federate(tmp_path, 2, aggregation={"precision": "auto", "max_abs": None})
    grid = grid_of(federation, [Stepper(1), Stepper(2)])
    with pytest.raises(ConfigError, match="previous"):
        SecAggStrategy(FedAvg(), federation["server"]).start(grid, to_record(FIRST))
    assert not grid.sent


def test_server_with_the_kit_of_a_site(federation: Federation) -> None:
    with pytest.raises(KeyFileError, match="the kit of a site; give the server's"):
        SecAggStrategy(FedAvg(), federation["site-0"]).start(grid_of(federation, []), to_record(FIRST))


def test_mod_without_strategy(federation: Federation) -> None:
    grid = grid_of(federation, [Stepper(1), Stepper(2)])
    FedAvg().start(grid, to_record(FIRST), 1)
    assert sends_nothing(grid)
    assert all("let the ServerApp's strategy be SecAggStrategy" in reason for reason in reasons(grid))


def test_strategy_without_mod(federation: Federation) -> None:
    """The app finds no model where it looks for one, and so sends none."""
    with pytest.raises(QuorumError, match=r"mods=\[secagg_mod, …\].*node 10.: .*KeyError.*'arrays'"):
        run(federation, [Stepper(1, mods=()), Stepper(2, mods=())])


def test_app_that_looks_for_any_model(federation: Federation) -> None:
    """What it sends is plaintext, which the server can but refuse."""

    def train(message: Message, context: Context) -> Message:
        content = {"arrays": message.content["secagg-first"], "metrics": MetricRecord({"num-examples": 1})}
        return Message(RecordDict(content), reply_to=message)

    with pytest.raises(QuorumError, match=r"node 10.: an array of type 'numpy.ndarray' has come in the clear"):
        run(federation, [train, train])


def outside(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """A mod that tells how many examples there are, whatever the ones inside it say."""
    reply = call_next(message, context)
    for record in reply.content.values():
        if isinstance(record, MetricRecord):
            record["num-examples"] = 50
    return reply


@pytest.mark.parametrize(
    ("mod", "reason"),
    [(LocalDpMod(1.0, 0.1, 1.0, 0.1), "node 10.: .*ArrayRecord"), (outside, "has not gone through secagg_mod")],
)
def test_order_of_mods(federation: Federation, mod: Any, reason: str) -> None:
    grid = grid_of(federation, [Stepper(1, mods=(mod, secagg_mod)), Stepper(2, mods=(mod, secagg_mod))])
    with pytest.raises(QuorumError, match=rf"round 1 failed.*no mod outside it.*{reason}"):
        SecAggStrategy(FedAvg(fraction_evaluate=0.0), federation["server"]).start(grid, to_record(FIRST), 3)
    assert len(grid.sent) == 2


def test_mod_of_train_alone(federation: Federation, caplog: pytest.LogCaptureFixture) -> None:
    """What evaluates in the clear does not follow: it is sent all for each training."""

    def app_of(node: Stepper) -> ClientApp:
        app = ClientApp()
        app.train(mods=[secagg_mod])(node.train)
        metrics = MetricRecord({"num-examples": 10})
        app.evaluate()(lambda message, context: Message(RecordDict({"metrics": metrics}), reply_to=message))
        return app

    nodes = [Stepper(1), Stepper(2)]
    result, grid = run(federation, [app_of(node) for node in nodes], 3)
    assert len(nodes[0].trained) == len(result.train_metrics_clientapp) == 3
    assert not result.evaluate_metrics_clientapp
    assert not reasons(grid)
    assert caplog.text.count("has not gone through secagg_mod") == 2 * 3


def test_mods_inside_work(federation: Federation) -> None:
    model = {"w": np.zeros(5, np.float32)}
    nodes = [Stepper(1, mods=(secagg_mod, LocalDpMod(1.0, 0.01, 10.0, 0.1))) for _ in range(2)]
    grid = grid_of(federation, nodes)
    SecAggStrategy(FedAvg(fraction_evaluate=0.0), federation["server"]).start(grid, to_record(model), 2)
    assert not reasons(grid)
    assert 0.1 < np.linalg.norm(nodes[0].trained[1]["w"]) < 2  # clipped to a norm of 1


def test_kits(federation: Federation, tmp_path: Path) -> None:
    """A node without one, with that of the server, or of another federation: named, and the round goes on."""
    foreign = federate(tmp_path, 2)
    nodes = [Stepper(1) for _ in range(6)]
    grid = grid_of(federation, nodes)
    grid.node_configs[100] = {}
    grid.node_configs[101] = {"secagg-kit": str(federation["server"])}
    grid.node_configs[102] = {"secagg-kit": str(foreign["site-0"])}
    grid.node_configs[103] = {"secagg-kit": 7}
    SecAggStrategy(FedAvg(), federation["server"]).start(grid, to_record(FIRST), 1)
    said = {
        reply.metadata.src_node_id: str(reply.error.reason)
        for reply, _ in grid.replied
        if reply.has_error() and reply.metadata.message_type == "train"
    }
    assert said.keys() == {100, 101, 102, 103}
    assert "this node has no kit" in said[100]
    assert "give that of a site" in said[101]
    assert "manifest" in said[102]
    assert "this node has no kit" in said[103]


@pytest.mark.parametrize("node_config", [{}, None])
def test_run_that_chooses_the_keys(federation: Federation, node_config: dict[str, Any] | None) -> None:
    kit = str(federation["site-{partition}"])
    grid = grid_of(federation, [Stepper(1), Stepper(2)], run_config={"secagg-kit": kit})
    if node_config is not None:
        grid.node_configs = {100: node_config, 101: node_config}
    with pytest.raises(QuorumError, match="who starts a run would choose the keys"):
        SecAggStrategy(FedAvg(), federation["server"]).start(grid, to_record(FIRST), 1)
    assert sends_nothing(grid)


@pytest.mark.parametrize("place", ["run", "environment"])
def test_simulation(federation: Federation, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    kit = str(federation["site-{partition}"])
    monkeypatch.setenv("SECAGG_SIMULATION", "1")
    if place == "environment":
        monkeypatch.setenv("SECAGG_KIT", kit)
    nodes = [Stepper(1), Stepper(2)]
    grid = grid_of(federation, nodes, run_config={"secagg-kit": kit} if place == "run" else {})
    grid.node_configs = {100 + node: {"partition-id": node, "num-partitions": 2} for node in range(2)}
    SecAggStrategy(FedAvg(), federation["server"]).start(grid, to_record(FIRST), 1)
    assert not reasons(grid)


def test_environment_alone_is_no_simulation(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECAGG_KIT", str(federation["site-0"]))
    grid = grid_of(federation, [Stepper(1), Stepper(2)])
    grid.node_configs = {}
    with pytest.raises(QuorumError, match="this node has no kit"):
        SecAggStrategy(FedAvg(), federation["server"]).start(grid, to_record(FIRST), 1)


def test_two_nodes_with_one_kit(federation: Federation, caplog: pytest.LogCaptureFixture) -> None:
    nodes = [Stepper(1), Stepper(2), Stepper(2)]
    grid = grid_of(federation, nodes)
    grid.node_configs[102] = grid.node_configs[101]
    result = SecAggStrategy(ALL, federation["server"]).start(grid, to_record(FIRST), 2)
    assert len(result.train_metrics_clientapp) == 2
    assert caplog.text.count("site site-1 contributes twice to the round") == 1
    assert "another process works under its name" in caplog.text  # says that node when it sees the sum
    np.testing.assert_allclose(nodes[0].evaluated[0]["w"], FIRST["w"] + (10 + 40) / 30, atol=1e-4)


def test_fewer_than_min_clients(tmp_path: Path) -> None:
    federation = federate(tmp_path, 3, aggregation={"min_clients": 3})

    def fails(message: Message, context: Context) -> Message:
        raise ValueError("out of data")

    with pytest.raises(QuorumError) as caught:
        run(federation, [Stepper(1), fails, Stepper(3)], 5, silent={102})
    for part in ("min_clients is 3", "node 101: ", "out of data", "node 102: no reply"):
        assert part in str(caught.value)


def test_reply_of_another_run(federation: Federation, caplog: pytest.LogCaptureFixture) -> None:
    _, former = run(federation, [Stepper(1), Stepper(2)])
    (old,) = [r for r, _ in former.replied if (r.metadata.message_type, r.metadata.src_node_id) == ("train", 100)]

    def replays(message: Message, context: Context) -> Message:
        if message.metadata.message_type == "evaluate":
            raise ValueError
        return Message(old.content, reply_to=message)

    nodes = [Stepper(2), Stepper(3)]
    grid = grid_of(federation, [replays, *nodes])
    SecAggStrategy(ALL, federation["server"]).start(grid, to_record(FIRST), 1)
    assert "node 100: the update from site-0 began from the global model" in caplog.text
    np.testing.assert_allclose(nodes[0].evaluated[0]["w"], FIRST["w"] + (40 + 90) / 50, atol=1e-4)


def test_messages_that_are_played_back(federation: Federation) -> None:
    """An aggregate counts once, however often it comes; who plays back an earlier round gets nothing."""
    nodes = [Stepper(1), Stepper(2)]
    _, grid = run(federation, nodes, 2)
    messages = [message for message, _ in grid.sent if message.metadata.dst_node_id == 100]
    assert [message.metadata.message_type for message in messages] == ["train", "evaluate"] * 2
    before, count = len(grid.replied), len(nodes[0].trained)
    (again,) = grid.send_and_receive(messages[3:])
    assert not again.has_error()
    assert np.array_equal(nodes[0].evaluated[-1]["w"], nodes[0].evaluated[-2]["w"])
    for message in messages[:3]:
        (reply,) = grid.send_and_receive([message])
        assert "plays back an earlier round" in str(reply.error.reason)
    assert len(grid.replied) == before + 4
    assert len(nodes[0].trained) == count


def changed(change: Callable[[RecordDict], None]) -> App:
    """An app of a node whose reply is changed before the mod has it."""

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        reply = call_next(message, context)
        change(reply.content)
        return reply

    return Stepper(1, mods=(secagg_mod, mod))


def rename(content: RecordDict) -> None:
    content["arrays"] = ArrayRecord({"v": content["arrays"]["w"]})


REPLIES: dict[str, tuple[Callable[[RecordDict], Any], str]] = {
    "no weight": (lambda content: content["metrics"].pop("num-examples"), "no number 'num-examples'"),
    "two weights": (lambda content: content["metrics"].update({"num-examples": [1, 2]}), "no number 'num-examples'"),
    "weight out of bounds": (lambda content: content["metrics"].update({"num-examples": 123456}), "out of bounds"),
    "two metrics": (lambda content: content.update({"more": MetricRecord()}), "2 of MetricRecord"),
    "no arrays": (lambda content: content.pop("arrays"), "0 of ArrayRecord"),
    "two arrays": (lambda content: content.update({"more": to_record(FIRST)}), "2 of ArrayRecord"),
    "another model": (rename, "lacks 'count', 'scale', 'w'"),
}


@pytest.mark.parametrize(("change", "reason"), REPLIES.values(), ids=REPLIES.keys())
def test_replies_of_the_app(federation: Federation, change: Callable[[RecordDict], Any], reason: str) -> None:
    with pytest.raises(QuorumError, match=reason) as caught:
        run(federation, [changed(change), changed(change)])
    assert "123456" not in str(caught.value)


def test_evaluate_that_replies_arrays(federation: Federation) -> None:
    def change(content: RecordDict) -> None:
        content["arrays"] = to_record(FIRST)

    _, grid = run(federation, [changed(change), Stepper(2)])
    (reason,) = reasons(grid)
    assert "arrays, which would leave in the clear" in reason


def test_metric_of_train_and_evaluate(tmp_path: Path) -> None:
    federation = federate(tmp_path, 2, aggregation={"max_abs": {"default": 8.0, "secagg.metrics*": 8.0}})

    def change(content: RecordDict) -> None:
        content["metrics"]["loss"] = 1.0

    grid = grid_of(federation, [changed(change), changed(change)])
    with pytest.raises(QuorumError, match="train and evaluate both tell loss"):
        SecAggStrategy(FedAvg(), federation["server"], metrics=["loss"]).start(grid, to_record(FIRST), 2)


def test_metrics_that_differ(federation: Federation, caplog: pytest.LogCaptureFixture) -> None:
    def change(content: RecordDict) -> None:
        if "arrays" in content:
            content["metrics"]["more"] = 1.0

    result, _ = run(federation, [changed(change), Stepper(2)])
    assert "tell different metrics" in caplog.text
    assert not result.train_metrics_clientapp
    assert result.evaluate_metrics_clientapp


ODD: dict[str, Callable[[MetricRecord], Any]] = {
    "a list": lambda told: told.update({name: [1.0, 2.0] for name in told.keys() - {"num-examples"}}),
    "another": lambda told: told.update({"more": 1}),
}


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize("odd", ODD.values(), ids=ODD.keys())
def test_node_whose_metrics_are_odd(
    federation: Federation, caplog: pytest.LogCaptureFixture, odd: Callable[[MetricRecord], Any], kind: str
) -> None:
    """Others tell theirs in vain; the run goes on."""

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        reply = call_next(message, context)
        if message.metadata.message_type == kind:
            odd(reply.content["metrics"])
        return reply

    nodes = [Stepper(1, mods=(mod, secagg_mod)), Stepper(2), Stepper(3)]
    result, _ = run(federation, nodes, 2)
    assert caplog.text.count("tell different metrics") == 2
    assert (kind == "train") != bool(result.train_metrics_clientapp)
    assert (kind == "evaluate") != bool(result.evaluate_metrics_clientapp)
    np.testing.assert_allclose(nodes[0].evaluated[1]["w"], FIRST["w"] + 2 * 14 / 6, atol=1e-4)


def test_stored_model_that_nobody_asked_for(federation: Federation, caplog: pytest.LogCaptureFixture) -> None:
    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        message.content["secagg"]["store"] = True
        return call_next(message, context)

    nodes = [Stepper(1, mods=(mod, secagg_mod)), Stepper(2), Stepper(3)]
    grid = grid_of(federation, nodes)
    inner = FedAvg(fraction_evaluate=0.0)
    SecAggStrategy(inner, federation["server"]).start(grid, to_record(FIRST), 1)
    assert "node 100: the reply has a global model, for which another node is asked" in caplog.text


def test_kind_of_message_that_no_app_has_by_now(federation: Federation) -> None:
    """Apps of older releases answer it with their model, in the clear."""
    asked = Message(RecordDict(), dst_node_id=100, message_type="query")
    asked.metadata.__dict__["_message_type"] = "get_parameters"
    context = Context(7, 100, {"secagg-kit": str(federation["site-0"])}, RecordDict(), {})
    with pytest.raises(StateError, match="this node sends nothing"):
        secagg_mod(asked, context, lambda message, context: pytest.fail("the app was asked"))


def test_sum_that_cannot_be_used(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error names what the server must not read."""

    def receive(*arguments: Any) -> dict[str, Any]:
        raise ImplausibleSumError("the sum of weights is 123456")

    monkeypatch.setattr(Follower, "receive", receive)
    with pytest.raises(QuorumError, match="the sum cannot be used: the log of this node tells why") as caught:
        run(federation, [Stepper(1), Stepper(2)])
    assert "123456" not in str(caught.value)


def test_model_that_cannot_be_aggregated(federation: Federation) -> None:
    with pytest.raises(LayoutError):
        SecAggStrategy(FedAvg(), federation["server"]).start(grid_of(federation, []), ArrayRecord())


def test_of_a_traceback_the_last_line_is_shown() -> None:
    """As Ray writes it: its line ends are characters."""
    from secagg.integrations.flower.strategy import _last_line

    told = "KeyFileError: /kits/site-0 is no kit (it has neither key)"
    assert _last_line(f"RayTaskError('Traceback\\n  File x\\n{told}\\n')") == told
    assert _last_line(told) == told
    assert _last_line(None) == ""
