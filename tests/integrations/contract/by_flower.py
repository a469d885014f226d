"""Flower's mod and strategy over a grid in one process, whose nodes have nothing but their Context between messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from flower_grid import ToyGrid
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from provisioned import Federation
from schedule import SITES, Run, State, Task, Turn, arrays
from tasks import TorchTask

from secagg.integrations.flower import SecAggStrategy, secagg_mod

NODES = {100 + index: site for index, site in enumerate(SITES)}
_SECONDS = 0.1  # to wait for what is lost: all else is there when it is asked for


def run_flower(kits: Federation, task: Task, schedule: Sequence[Turn]) -> Run:
    run = Run()
    grid = LosingGrid(
        apps={node: lambda *message, site=site: app(run, task, site)(*message) for node, site in NODES.items()},
        node_configs={node: {"secagg-kit": str(kits[site])} for node, site in NODES.items()},
    )
    strategy = SecAggStrategy(Scheduled(grid, schedule), kits["server"])
    strategy.start(grid, to_record(task.initial()), len(schedule), timeout=_SECONDS)
    return run


def app(run: Run, task: Task, site: str) -> ClientApp:
    """A node's app, as each of its processes makes it."""
    made = ClientApp(mods=[secagg_mod])

    @made.train()
    def train(message: Message, context: Context) -> Message:
        round = int(message.content["config"]["server-round"]) - 1
        local = run.train(task, site, round, from_record(message.content["arrays"], task))
        content = {"arrays": to_record(local), "metrics": MetricRecord({"num-examples": task.weights[site]})}
        return Message(RecordDict(content), reply_to=message)

    @made.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        run.final[site] = arrays(from_record(message.content["arrays"], task))
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return made


def to_record(state: State) -> ArrayRecord:
    return ArrayRecord({name: Array(value) for name, value in arrays(state).items()})


def from_record(record: ArrayRecord, task: Task) -> State:
    if isinstance(task, TorchTask):
        return record.to_torch_state_dict()
    return {name: np.asarray(array.numpy()) for name, array in record.items()}


class LosingGrid(ToyGrid):
    """Has the nodes of a turn, and loses what some of them reply to training."""

    turn = Turn(SITES)

    def get_node_ids(self) -> Iterable[int]:
        return [node for node, site in NODES.items() if site in self.turn.trains]

    def _push(self, message: Message) -> str:
        identity = super()._push(message)
        if NODES[message.metadata.dst_node_id] in self.turn.lost and message.metadata.message_type == MessageType.TRAIN:
            del self._waiting[identity]
        return identity


class Scheduled(FedAvg):
    """Has all nodes of a turn train and evaluate."""

    def __init__(self, grid: LosingGrid, schedule: Sequence[Turn]) -> None:
        super().__init__()
        self._grid, self._schedule = grid, schedule

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Any:
        self._grid.turn = self._schedule[server_round - 1]
        return super().configure_train(server_round, arrays, config, grid)
