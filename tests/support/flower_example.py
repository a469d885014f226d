"""The example app of docs/examples/flower: without the lines that encrypt it, and in one process."""

from __future__ import annotations

import importlib
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flower_grid import ToyGrid
from flwr.app import Context, RecordDict

APP = Path(__file__).resolve().parents[2] / "docs" / "examples" / "flower"

IMPORTS = {
    "client_app.py": ["from secagg.integrations.flower import secagg_mod\n"],
    "server_app.py": ["import os\n", "from secagg.integrations.flower import SecAggStrategy\n"],
}
LINES = {
    "client_app.py": (["app = ClientApp()\n"], ["app = ClientApp(mods=[secagg_mod])\n"]),
    "server_app.py": ([], ['    strategy = SecAggStrategy(strategy, os.environ["SECAGG_SERVER_KIT"])\n']),
}


def copy_app(folder: Path, name: str = "app") -> Path:
    """The app in a folder of the test's own."""
    return Path(shutil.copytree(APP, folder / name, ignore=shutil.ignore_patterns("__pycache__")))


def make_plain(app: Path) -> Path:
    """Undo what encrypts the app."""
    for name, imports in IMPORTS.items():
        path = app / "digits" / name
        text = path.read_text()
        before, after = LINES[name]
        for lines, instead in [*((line, "") for line in imports), ("".join(after), "".join(before))]:
            assert text.count(lines) == 1, lines
            text = text.replace(lines, instead)
        path.write_text(text)
    return app


class Run:
    """The app in this process, each message as bytes between."""

    def __init__(
        self, app: Path, node_configs: dict[int, dict[str, Any]], rounds: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.nodes = len(node_configs)
        for name in [name for name in sys.modules if name.partition(".")[0] == "digits"]:
            del sys.modules[name]
        self.models: list[list[np.ndarray[Any, Any]]] = []  # of each evaluation
        with monkeypatch.context() as patch:
            patch.syspath_prepend(str(app))
            task, client, server = (
                importlib.import_module(f"digits.{name}") for name in ("task", "client_app", "server_app")
            )
        evaluated = task.test

        def noted(model: Any, images: Any, labels: Any) -> float:
            self.models.append(model)
            return float(evaluated(model, images, labels))

        monkeypatch.setattr(client, "test", noted)
        config = {"num-nodes": self.nodes, "num-server-rounds": rounds, "learning-rate": 0.5, "local-steps": 20}
        self.grid = ToyGrid(dict.fromkeys(node_configs, client.app), node_configs, config)
        server.app(grid=self.grid, context=Context(7, 1, {}, RecordDict(), config))

    def told(self, name: str) -> np.ndarray[Any, Any]:
        """What nodes have told, a row for each time that all were asked."""
        replies = [(reply.metadata.src_node_id, reply.content["metrics"]) for reply, _ in self.grid.replied]
        asked = [dict(replies[start : start + self.nodes]) for start in range(0, len(replies), self.nodes)]
        return np.array([[row[node][name] for node in sorted(row)] for row in asked if name in row[1]])


def node_configs(sites: Mapping[str, Path]) -> dict[int, dict[str, Any]]:
    """What SuperNodes are told, for the kits of sites."""
    return {
        number + 1: {"partition-id": number, "num-partitions": len(sites), "secagg-kit": str(kit)}
        for number, kit in enumerate(sites.values())
    }


def accuracies(output: str) -> list[float]:
    """The means that a run's log has of what nodes told, round by round."""
    return [float(number) for number in re.findall(r"Aggregated MetricRecord: \{'accuracy': ([\d.]+)\}", output)]
