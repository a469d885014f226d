"""docs/own-data.md as it stands there: its commands on small data, its block, its curves."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from decathlon_folder import CT, write_folder
from mortal import free_port
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from secagg.cli import main
from secagg.integrations.monai.settings import Settings
from secagg.setup import ProjectFile

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "own-data.md").read_text(encoding="utf-8")
ENVIRONMENT = {**os.environ, "SECAGG_PASSPHRASE": "a passphrase for this test", "OMP_NUM_THREADS": "1"}


def blocks(language: str = "") -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == language]


def project() -> dict[str, Any]:
    (text,) = blocks("yaml")
    read: dict[str, Any] = yaml.safe_load(text)
    return read


def commands(name: str, port: int = 0) -> list[list[str]]:
    lines = "".join(blocks()).replace("localhost:8443", f"localhost:{port}").splitlines()
    assert all(line.startswith("secagg ") for line in lines)
    return [shlex.split(line)[1:] for line in lines if line.split()[1] == name]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path / "Task09_Spleen", 6)
    write_folder(tmp_path / "Task09_Other", 5, seed=1)
    return tmp_path


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "secagg.cli", *command],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@contextmanager
def serving(command: list[str], folder: Path) -> Iterator[None]:
    words = [sys.executable, "-m", "secagg.cli", *command]
    with subprocess.Popen(words, cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert "serving on" in process.stdout.readline()
            yield
        finally:
            process.kill()


def test_the_federation_of_the_page(folder: Path) -> None:
    (text,) = blocks("yaml")
    (folder / "project.yaml").write_text(text, encoding="utf-8")
    port = free_port()
    for command in (*commands("provision"), *commands("unpack")):
        run(command, folder)
    (serve,) = commands("serve", port)
    with serving(serve, folder), ThreadPoolExecutor(2) as pool:
        outputs = list(pool.map(lambda command: run(command, folder), commands("site", port)))
    models = [safetensors.torch.load_file(folder / f"site-{number}.safetensors") for number in (1, 2)]
    network = Settings.of_block(project()["task"]).make_network()
    network.load_state_dict(models[0])
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert (folder / "best-1.safetensors").read_bytes() == (folder / "best-2.safetensors").read_bytes()
    for number, output in enumerate(outputs, 1):
        shown = re.findall(r"^round \d \(\d of 3\): dice (0\.\d{4}), dice_spleen", output, re.MULTILINE)
        assert len(shown) == 3
        events = EventAccumulator(str(folder / f"curves-{number}")).Reload()
        assert [event.step for event in events.Scalars("train_loss")] == list(range(1, 13))
        dice = events.Scalars("dice")
        assert [event.step for event in dice] == [0, 1, 2]
        assert [f"{event.value:.4f}" for event in dice] == shown
        assert float(shown[-1]) > 0.5
    best = [re.findall(r"began from, with the best dice: 0\.\d{4}, mean of all sites$", each, re.M) for each in outputs]
    assert best[0] == best[1]
    assert len(best[0]) == 1


def test_what_the_page_proposes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its block names what `secagg inspect` names, and a project takes what that prints as it is."""
    monkeypatch.chdir(folder)
    (command,) = commands("inspect")
    assert main(command) == 0
    shown = capsys.readouterr().out
    proposed, page = yaml.safe_load(shown[shown.index("metrics:") :]), project()
    assert proposed["metrics"] == page["metrics"]
    assert Settings.of_block(proposed["task"]).block == proposed["task"]
    assert page["task"].keys() <= proposed["task"].keys()
    for name in ("modality", "labels", "spacing", "patch"):
        assert proposed["task"][name] == page["task"][name]
    written = page | proposed
    (folder / "project.yaml").write_text(yaml.safe_dump(written), encoding="utf-8")
    assert ProjectFile.load(folder / "project.yaml").task == proposed["task"]
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", PAGE[PAGE.index("| in `task:` |") :], re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == proposed["task"].keys()


def test_the_size_of_the_network() -> None:
    block = {name: value for name, value in project()["task"].items() if name != "filters"}
    network = Settings.of_block(block).make_network()
    (millions,) = re.findall(r"16 if left out: ([\d.]+) million", PAGE)
    assert f"{sum(value.numel() for value in network.parameters()) / 1e6:.1f}" == millions


@pytest.mark.long  # tests/cli/test_own_data.py has what differs from the demo's other data
def test_the_demo_of_the_page(folder: Path) -> None:
    (command,) = commands("demo")
    shown = run([*command, "--run-dir", "run"], folder)
    assert "6 cases of" in shown
    found = re.search(r"held-out Dice after 2 rounds: (\d\.\d+) encrypted, (\d\.\d+) raw, difference", shown)
    assert found
    assert abs(float(found[1]) - float(found[2])) <= 0.02


def test_the_folder_of_the_page() -> None:
    for key in ("modality", "labels"):
        assert f"| `{key}` | `{json.dumps(CT[key])}` |" in PAGE
