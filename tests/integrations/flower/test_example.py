"""docs/examples/flower: two lines encrypt it, and it learns what the unencrypted app learns."""

from __future__ import annotations

import difflib
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from flower_deployment import APP, copy_app, environment, free_port, kill
from flower_grid import ToyGrid
from flwr.app import ArrayRecord, Context, RecordDict
from provisioned import Federation

import secagg
from secagg.scheme.codec import codec_for

NODES = 3
SITES = tuple(f"site-{number}" for number in range(NODES))
IMPORTS = {
    "client_app.py": ["from secagg.integrations.flower import secagg_mod\n"],
    "server_app.py": ["import os\n", "from secagg.integrations.flower import SecAggStrategy\n"],
}
LINES = {
    "client_app.py": (["app = ClientApp()\n"], ["app = ClientApp(mods=[secagg_mod])\n"]),
    "server_app.py": ([], ['    strategy = SecAggStrategy(strategy, os.environ["SECAGG_SERVER_KIT"])\n']),
}


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Kits of the example's federation."""
    project = yaml.safe_load((APP / "project.yaml").read_text())
    return Federation.make(tmp_path_factory.mktemp("federation"), **project)


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


def changes(old: str, new: str) -> tuple[list[str], list[str]]:
    """The lines that go, and those that come."""
    lines = list(difflib.ndiff(old.splitlines(keepends=True), new.splitlines(keepends=True)))
    return [line[2:] for line in lines if line.startswith("- ")], [line[2:] for line in lines if line.startswith("+ ")]


def test_two_lines_and_their_imports_encrypt_it(tmp_path: Path) -> None:
    plain = make_plain(copy_app(tmp_path))
    for name, imports in IMPORTS.items():
        gone, come = changes((plain / "digits" / name).read_text(), (APP / "digits" / name).read_text())
        assert gone == LINES[name][0]
        assert sorted(come) == sorted(LINES[name][1] + imports)
    assert sum(len(after) for _, after in LINES.values()) == 2
    (shown,) = re.findall(r"```diff\n(.*?)```", (APP / "README.md").read_text(), re.DOTALL)
    for sign, number in ("-", 0), ("+", 1):
        lines = [line[1:] for line in shown.splitlines(keepends=True) if line.startswith(sign)]
        assert lines == [line for name in LINES for line in LINES[name][number]]


class Run:
    """The app in this process, each message as bytes between."""

    def __init__(self, app: Path, node_configs: dict[int, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
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
        config = {"num-nodes": NODES, "num-server-rounds": 5, "learning-rate": 0.5, "local-steps": 20}
        self.grid = ToyGrid(dict.fromkeys(node_configs, client.app), node_configs, config)
        server.app(grid=self.grid, context=Context(7, 1, {}, RecordDict(), config))

    def told(self, name: str) -> np.ndarray[Any, Any]:
        """What nodes have told, a row for each time that all were asked."""
        replies = [(reply.metadata.src_node_id, reply.content["metrics"]) for reply, _ in self.grid.replied]
        asked = [dict(replies[start : start + NODES]) for start in range(0, len(replies), NODES)]
        return np.array([[row[node][name] for node in sorted(row)] for row in asked if name in row[1]])



def test_it_learns_what_the_unencrypted_app_learns(
    kits: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECAGG_SERVER_KIT", str(kits["server"]))
    nodes = {
        number + 1: {"partition-id": number, "num-partitions": NODES, "secagg-kit": str(kits[site])}
        for number, site in enumerate(SITES)
    }
    plain, encrypted = Run(make_plain(copy_app(tmp_path)), nodes, monkeypatch), Run(APP, nodes, monkeypatch)

    # All nodes evaluate one model; after the first round it is within what rounding may change of the plain one.
    assert len(plain.models) == len(encrypted.models) == 5 * NODES
    for first, second, third in zip(*[iter(encrypted.models)] * NODES, strict=True):
        assert all((a == b).all() and (a == c).all() for a, b, c in zip(first, second, third, strict=True))
    trained, tested = plain.told("num-examples")[:2]
    config = secagg.Client.load(kits["site-0"]).config
    weight = trained.sum() / config.aggregation.max_weight
    bound = codec_for(config.params, config.aggregation).mean_error(NODES, weight)
    for ours, theirs in zip(encrypted.models[0], plain.models[0], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=bound + 1e-6)

    # One image of a node more or less is all that this may change.
    accuracy = encrypted.told("accuracy")
    np.testing.assert_allclose(accuracy, plain.told("accuracy"), atol=1.01 / tested.max())
    assert accuracy[-1].min() > 0.9
    assert (encrypted.told("num-examples") == 1).all()


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Variables of a shell whose `flwr run` starts a SuperLink of its own, which ends with the test."""
    home = tmp_path / "home"
    ports = ("FLWR_LOCAL_SUPERLINK_HTTP_API_PORT", "FLWR_LOCAL_CONTROL_API_PORT")
    try:
        yield environment(home, **{name: str(free_port()) for name in ports})
    finally:
        kill(local_superlinks(home))


def local_superlinks(home: Path) -> list[psutil.Process]:
    """SuperLinks that `flwr run` has started; they are nobody's children."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if str(home / "local-superlink" / "superlink.log") in (process.info["cmdline"] or [])
    ]


def accuracies(output: str) -> list[float]:
    return [float(number) for number in re.findall(r"Aggregated MetricRecord: \{'accuracy': ([\d.]+)\}", output)]


@pytest.mark.long
def test_flwr_run_as_the_readme_has_it(kits: Federation, tmp_path: Path, shell: dict[str, str]) -> None:
    """All that it says to type, but what installs and what ends all SuperLinks of this user."""
    app = copy_app(tmp_path)
    text = (app / "README.md").read_text().replace("/tmp/digits-kits", str(tmp_path / "kits"))
    install, *todo, end = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    assert install.startswith("pip install '../../..[flower]'")
    assert end == "pkill -f local-superlink\n"
    program = tmp_path / "bin" / "secagg"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m secagg.cli "$@"\n')  # of this checkout
    program.chmod(0o755)

    def run(*commands: str) -> str:
        done = subprocess.run(
            ["bash", "-e"],
            input="\n".join(commands),
            cwd=app,
            env={**shell, "PATH": f"{program.parent}{os.pathsep}{shell['PATH']}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    encrypted = run(*install.splitlines()[1:], *todo)
    (superlink,) = local_superlinks(tmp_path / "home")
    assert re.search(end.split()[-1], " ".join(superlink.cmdline()))
    found = accuracies(encrypted)
    assert len(found) == 5
    shown = re.findall(r"0\.\d{4}", text)
    np.testing.assert_allclose(found, [float(number) for number in shown[:5]], atol=0.01)

    make_plain(app)
    plain = accuracies(run(todo[-1]))
    np.testing.assert_allclose(plain, [float(number) for number in shown[5:]], atol=0.01)
