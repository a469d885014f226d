"""docs/integrating.md as it stands there: its federation of processes, and its loops with our server."""

from __future__ import annotations

import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from callback_sites import ROUNDS, SITES, Sites, kits, sites

from secagg.setup.project_file import ProjectFile
from secagg.setup.provisioner import Provisioner

__all__ = ["kits", "sites"]

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "integrating.md").read_text(encoding="utf-8")


def blocks(language: str = "") -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == language]


def test_the_page_is_short() -> None:
    assert len(blocks("python")) == 3
    assert len(blocks("python")[0].splitlines()) <= 40
    assert len(PAGE.splitlines()) <= 150


def test_the_commands_are_those_that_another_page_runs() -> None:
    own_task = (Path(__file__).resolve().parents[2] / "docs" / "own-task.md").read_text(encoding="utf-8")
    assert set(blocks()[0].splitlines()) <= set(own_task.splitlines())


def test_the_federation_of_processes(tmp_path: Path) -> None:
    """A round later, for the first one measures only, each begins from what it begins from without encryption."""
    folder = tmp_path / "kits"
    folder.mkdir()
    (tmp_path / "project.yaml").write_text(blocks("yaml")[0], encoding="utf-8")
    Provisioner.create(ProjectFile.load(tmp_path / "project.yaml"), tmp_path / "authority", folder)
    (folder / "loop.py").write_text(blocks("python")[0], encoding="utf-8")
    command = [sys.executable, "-W", "error", "loop.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    output = done.stdout

    loop = types.ModuleType("loop")
    exec(blocks("python")[0], loop.__dict__)
    expected = plain(loop)
    for name in loop.SITES:
        found = dict(re.findall(rf"{name}: round (\d) begins from accuracy (0\.\d{{4}})", output))
        shown = [float(found[str(round)]) for round in range(loop.ROUNDS)]
        assert shown[0] == shown[1] == pytest.approx(expected[0])
        np.testing.assert_allclose(shown[1:], expected[:-1], atol=0.005)
        assert shown[-1] == pytest.approx(float(re.findall(r"accuracy (0\.\d+), as without", PAGE)[0]), abs=0.002)
    assert len(set(re.findall(r"round 6 begins from accuracy (0\.\d{4})", output))) == 1


def plain(loop: Any) -> list[float]:
    """The accuracies that rounds begin from where nothing is encrypted."""
    data = {name: loop.draw(count, int(name[-1])) for name, count in loop.SITES.items()}
    points, labels = loop.draw(2000, 0)
    weight, accuracies = loop.FIRST["weight"], []
    for _ in range(loop.ROUNDS):
        accuracies.append(float(((points @ weight).argmax(axis=1) == labels).mean()))
        trained = {name: loop.train(weight, *data[name])["weight"] for name in data}
        total = sum(loop.SITES.values())
        weight = sum(np.float32(loop.SITES[name] / total) * value for name, value in trained.items())
    return accuracies


def code_of(block: int, sites: Sites, name: str) -> str:
    code = blocks("python")[block].replace("fl.example.org:8443", sites.server.address)
    return code.replace('"site-1"', repr(str(sites[name]))).replace("rounds=5", f"rounds={ROUNDS}")


def test_a_loop_with_our_server(sites: Sites) -> None:
    networks = {name: {"w": np.zeros(100, np.float32)} for name in SITES}

    def train(network: dict[str, np.ndarray]) -> None:
        network["w"] += np.float32(0.5)

    def work(name: str, _: Any) -> None:
        exec(code_of(1, sites, name), {"network": networks[name], "train": train, "dataset": [None] * SITES[name]})

    sites.run(work)
    for network in networks.values():
        np.testing.assert_allclose(network["w"], 0.5 * ROUNDS, atol=1e-3)


class Line(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.line = torch.nn.Linear(3, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": ((self.line(x)[:, 0] - labels) ** 2).mean()}


def test_the_callback_of_transformers(sites: Sites, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    networks = {name: Line() for name in SITES}
    arguments = {  # before any of them trains: whenever they are made, accelerate's state begins anew, for all threads
        name: TrainingArguments(
            output_dir=str(tmp_path / name),
            num_train_epochs=ROUNDS,
            learning_rate=0.1,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        for name in SITES
    }

    def work(name: str, session: Any) -> None:
        given = {
            "kit": sites[name],
            "session": session,
            "Trainer": Trainer,
            "model": networks[name],
            "arguments": arguments[name],
            "dataset": [{"x": torch.ones(3), "labels": torch.tensor(2.0)}] * SITES[name],
        }
        exec(code_of(2, sites, name), given)

    sites.run(work)
    first = Line().line.weight
    assert torch.equal(networks["a"].line.weight, networks["b"].line.weight)
    assert not torch.allclose(networks["a"].line.weight, first, atol=0.01)
