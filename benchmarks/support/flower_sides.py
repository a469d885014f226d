"""What takes part in a round of Flower: an app that changes a model as it is told, and a grid that forgets."""

from __future__ import annotations

import shelve
import tracemalloc
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flower_grid import ToyGrid
from flower_nodes import from_record, to_record
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from million import State
from provisioned import Federation

from secagg.integrations.flower import secagg_mod


class Changer:
    """Adds a change to the model that it is sent, and keeps the one that it evaluates."""

    def __init__(self, change: State, steps: int) -> None:
        self.evaluated: State = {}
        self._change, self._steps = change, steps
        self._app = ClientApp(mods=[secagg_mod])
        self._app.train()(self._train)
        self._app.evaluate()(self._evaluate)

    def __call__(self, message: Message, context: Context) -> Message:
        return self._app(message, context)

    def _train(self, message: Message, context: Context) -> Message:
        model = from_record(message.content["arrays"])
        trained = to_record({name: value + self._change[name] for name, value in model.items()})
        metrics = MetricRecord({"num-examples": self._steps})
        return Message(RecordDict({"arrays": trained, "metrics": metrics}), reply_to=message)

    def _evaluate(self, message: Message, context: Context) -> Message:
        self.evaluated = from_record(message.content["arrays"])
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1})}), reply_to=message)


def nodes_of(federation: Federation, apps: dict[str, Changer]) -> tuple[dict[int, Changer], dict[int, dict[str, Any]]]:
    """Return the apps of a grid and the configuration of its nodes, which are the sites of these names."""
    kits = {number: {"secagg-kit": str(federation[site])} for number, site in enumerate(apps, 100)}
    return dict(enumerate(apps.values(), 100)), kits


class ForgetfulGrid(ToyGrid):
    """Replies wait on disk, and no message is remembered: what memory grows by between pulls is the server's.

    From the first pull on, `base` is what was in memory then; the nodes have done their part, since a push runs them.
    """

    base = 0

    @classmethod
    def make(cls, folder: Path, *nodes: Any) -> ForgetfulGrid:
        grid = cls(*nodes)
        grid.sent, grid.replied = deque(maxlen=0), deque(maxlen=0)
        grid._waiting = shelve.open(str(folder / "replies"))  # noqa: SIM115  # own pickles, closed with the grid
        return grid

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        if not self.base:
            tracemalloc.reset_peak()
            self.base = tracemalloc.get_traced_memory()[0]
        return super().pull_messages(message_ids)
