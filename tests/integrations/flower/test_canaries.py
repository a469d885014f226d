"""What is used of Flower, all of it in one place: a release that moves one of these fails here, by its name."""

from __future__ import annotations

import ast
import inspect
import logging
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flower_grid import ToyGrid, deflate, inflate
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Strategy

import secagg.integrations.flower

FOLDER = Path(secagg.integrations.flower.__file__).parent

IMPORTED = {
    "flwr.app": {
        "Array",
        "ArrayRecord",
        "ConfigRecord",
        "Context",
        "Message",
        "MessageType",
        "MetricRecord",
        "RecordDict",
    },
    "flwr.clientapp.typing": {"ClientAppCallable"},
    "flwr.serverapp": {"Grid"},
    "flwr.serverapp.strategy": {"FedAvg", "Result", "Strategy"},
}

#: Parameters that are relied on, in order; those of `Strategy` are called by Flower or by the app of a user.
SIGNATURES: dict[Any, list[str]] = {
    Strategy.start: [
        "self",
        "grid",
        "initial_arrays",
        "num_rounds",
        "timeout",
        "train_config",
        "evaluate_config",
        "evaluate_fn",
    ],
    Strategy.summary: ["self"],
    Strategy.configure_train: ["self", "server_round", "arrays", "config", "grid"],
    Strategy.configure_evaluate: ["self", "server_round", "arrays", "config", "grid"],
    Strategy.aggregate_train: ["self", "server_round", "replies"],
    Strategy.aggregate_evaluate: ["self", "server_round", "replies"],
    Grid.push_messages: ["self", "messages"],
    Grid.pull_messages: ["self", "message_ids"],
    Grid.send_and_receive: ["self", "messages", "timeout"],
    Array.numpy: ["self"],
    Message.has_error: ["self"],
}

METADATA = ["dst_node_id", "message_type", "src_node_id"]
FEDAVG = ["arrayrecord_key", "fraction_evaluate", "train_metrics_aggr_fn", "weighted_by_key"]


def a_message(content: dict[str, Any]) -> Message:
    ToyGrid({}, {})  # gives this process a name
    return Message(RecordDict(content), dst_node_id=7, message_type="train")


@pytest.mark.parametrize("place", [f"{module}.{name}" for module, names in IMPORTED.items() for name in sorted(names)])
def test_name(place: str) -> None:
    module, _, name = place.rpartition(".")
    assert hasattr(import_module(module), name)


def test_nothing_else_is_imported() -> None:
    found: dict[str, set[str]] = {}
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "flwr":
                found.setdefault(str(node.module), set()).update(alias.name for alias in node.names)
            assert not (isinstance(node, ast.Import) and any(alias.name.startswith("flwr") for alias in node.names))
    assert found == IMPORTED


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__qualname__)
def test_signature(function: Any) -> None:
    assert list(inspect.signature(function).parameters) == SIGNATURES[function]


def test_abstract_methods_of_a_strategy() -> None:
    names = {"aggregate_evaluate", "aggregate_train", "configure_evaluate", "configure_train", "summary"}
    assert Strategy.__abstractmethods__ == names


def test_what_wraps_a_strategy_is_known_by_aggregate_train() -> None:
    assert FedAvg().aggregate_train.__func__ is FedAvg.aggregate_train  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", FEDAVG)
def test_attribute_of_fedavg(name: str) -> None:
    assert hasattr(FedAvg(), name)


@pytest.mark.parametrize("kind", ["TRAIN", "EVALUATE", "QUERY"])
def test_kind_of_message(kind: str) -> None:
    assert getattr(MessageType, kind) == kind.lower()


@pytest.mark.parametrize("name", METADATA)
def test_metadata(name: str) -> None:
    assert hasattr(a_message({}).metadata, name)


def test_content_can_be_replaced() -> None:
    message = a_message({"metrics": MetricRecord({"loss": 1.0})})
    message.content = RecordDict({"config": ConfigRecord({"a": 1})})
    assert list(message.content) == ["config"]
    message.content["metrics"] = MetricRecord()
    assert message.content.pop("config") == ConfigRecord({"a": 1})


def test_reason_of_an_error() -> None:
    reply = Message(Error(1, "why"), reply_to=a_message({}))
    assert reply.has_error()
    assert reply.error.reason == "why"
    assert reply.metadata.src_node_id == 7


def test_fields_of_an_array() -> None:
    array = Array("uint8", (3,), "secagg", b"abc")
    assert (array.dtype, array.shape, array.stype, array.data) == ("uint8", (3,), "secagg", b"abc")
    with pytest.raises(TypeError, match="Unsupported serialization type"):
        array.numpy()
    assert Array(np.asarray(1.5)).stype == "numpy.ndarray"


def test_fields_of_a_context() -> None:
    context = Context(1, 2, {"partition-id": 3}, RecordDict(), {"lr": 0.1})
    assert (context.node_config, context.state, context.run_config) == ({"partition-id": 3}, RecordDict(), {"lr": 0.1})


def test_what_a_handout_is_made_of_arrives_as_it_is() -> None:
    facts = ConfigRecord({"run": "x", "round": 0, "first": True, "store": False, "metrics": [], "names": ["a"]})
    sent = a_message({"facts": facts, "blobs": ArrayRecord({"b": Array("uint8", (0,), "secagg", b"")})})
    received = inflate(*deflate(sent))
    assert received.content == sent.content
    assert {name: type(value) for name, value in received.content["facts"].items()} == {
        "run": str,
        "round": int,
        "first": bool,
        "store": bool,
        "metrics": list,
        "names": list,
    }


def test_logger() -> None:
    assert logging.getLogger("flwr").handlers


def test_without_flower() -> None:
    code = (
        "import sys; sys.modules['flwr'] = None\n"
        "import secagg.integrations.flower as face\n"
        "for name in face.__all__:\n"
        "    try:\n        getattr(face, name)\n"
        "    except ImportError as error:\n        print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["secagg in Flower needs flwr: install secagg[flower]"] * 2


def test_server_loads_nothing_that_encrypts() -> None:
    code = (
        "import sys\nfrom secagg.integrations.flower import SecAggStrategy\n"
        "print(*[name for name in sys.modules if name.split('.')[0] in ('seal', 'tenseal', 'Pyfhel', 'torch')"
        " or name == 'secagg.site'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
