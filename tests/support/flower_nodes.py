"""Apps for the nodes of a toy grid: a small model that each moves by a step of its own, and a softmax of digits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flower_grid import ToyGrid
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod
from provisioned import Federation
from sklearn.datasets import load_digits

from secagg.integrations.flower import secagg_mod

#: Without the time of an HE library; what is decoded is the same at all sites, bit for bit.
EXACT = {"lib": "flashe", "config": {"value_bits": 24, "rounding": "nearest"}}
FIXED = {"min_clients": 2, "max_clients": 16, "max_weight": 1000, "max_abs": 8.0, "precision": "fixed"}
METERED = {"default": 8.0, "secagg.metrics": 1.0, "secagg.metrics.*": 2.0}

App = Callable[[Message, Context], Message]
Model = dict[str, np.ndarray]


def federate(folder: Path, sites: int, **changes: Any) -> Federation:
    """A federation whose sites are site-0, site-1 …"""
    aggregation = {key: value for key, value in (FIXED | changes.pop("aggregation", {})).items() if value is not None}
    names = [f"site-{index}" for index in range(sites)]
    return Federation.make(folder, sites=names, **{"he": EXACT, "aggregation": aggregation} | changes)


def grid_of(federation: Federation, apps: Sequence[App], **changes: Any) -> ToyGrid:
    """A grid whose node 100 + i has the kit of site-i."""
    nodes = {100 + index: app for index, app in enumerate(apps)}
    kits = {node: {"secagg-kit": str(federation[f"site-{node - 100}"])} for node in nodes}
    return ToyGrid(nodes, {node: kits[node] | {"partition-id": node - 100} for node in nodes}, **changes)


def to_record(model: Model) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(value)) for name, value in model.items()})


def from_record(record: ArrayRecord) -> Model:
    return {name: array.numpy() for name, array in record.items()}


FIRST: Model = {"w": np.arange(5, dtype=np.float32), "scale": np.array(1.0), "count": np.array(0)}


@dataclass
class Stepper:
    """Adds `step` to each float and to the count of a model; remembers what it was given."""

    step: int
    mods: Sequence[Mod] = (secagg_mod,)
    trained: list[Model] = field(default_factory=list)
    evaluated: list[Model] = field(default_factory=list)
    configs: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.app = ClientApp(mods=list(self.mods))
        self.app.train()(self.train)
        self.app.evaluate()(self.evaluate)
        self.app.query()(lambda message, context: Message(message.content, reply_to=message))

    def __call__(self, message: Message, context: Context) -> Message:
        return self.app(message, context)

    def train(self, message: Message, context: Context) -> Message:
        model = from_record(message.content["arrays"])
        self.trained.append(model)
        self.configs.append(dict(message.content["config"]))
        after = {name: value + np.asarray(self.step, value.dtype) for name, value in model.items()}
        metrics = {"num-examples": 10 * self.step, "loss": self.step / 4}
        content = RecordDict({"arrays": to_record(after), "metrics": MetricRecord(metrics)})
        return Message(content, reply_to=message)

    def evaluate(self, message: Message, context: Context) -> Message:
        self.evaluated.append(from_record(message.content["arrays"]))
        metrics = {"num-examples": 10 * self.step, "accuracy": self.step / 8}
        return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)


def digits_app(node: int, nodes: int, mods: Sequence[Mod]) -> ClientApp:
    """An app that trains a softmax of its share of the digits; the shares are of different sizes."""
    pixels, labels = load_digits(return_X_y=True)
    pixels = (pixels / 16).astype(np.float32)
    tests, parts = slice(0, 400), np.array_split(np.arange(400, len(labels)), nodes + 2)
    mine = np.concatenate(parts[node:]) if node == nodes - 1 else parts[node]
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        model = from_record(message.content["arrays"])
        error = _softmax(model, pixels[mine]) - np.eye(10, dtype=np.float32)[labels[mine]]
        model["w"] -= pixels[mine].T @ error / len(mine)
        model["b"] -= error.mean(axis=0)
        metrics = MetricRecord({"num-examples": len(mine)})
        return Message(RecordDict({"arrays": to_record(model), "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        right = _softmax(from_record(message.content["arrays"]), pixels[tests]).argmax(axis=1) == labels[tests]
        metrics = MetricRecord({"num-examples": len(mine), "accuracy": float(right.mean())})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


DIGITS: Model = {"w": np.zeros((64, 10), np.float32), "b": np.zeros(10, np.float32)}


def _softmax(model: Model, pixels: np.ndarray) -> np.ndarray:
    raised = np.exp(pixels @ model["w"] + model["b"])
    return raised / raised.sum(axis=1, keepdims=True)
