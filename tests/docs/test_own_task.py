"""docs/own-task.md as it stands there: its task, its federation of three, its commands."""

from __future__ import annotations

import os
import re
import shlex
import stat
import subprocess
import sys
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from mortal import free_port

from secagg import Config
from secagg.scheme.codec import codec_for
from secagg.setup.project_file import ProjectFile

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "own-task.md").read_text(encoding="utf-8")
SITES = ("site-1", "site-2", "site-3")


def blocks(language: str = "") -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == language]


def files() -> Iterator[tuple[str, str]]:
    """The files of the page: each block follows its name."""
    yield from re.findall(r"`([\w.]+)`:\n```\w+\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def commands(port: int) -> list[list[str]]:
    lines = "".join(blocks()).replace("localhost:8443", f"localhost:{port}").splitlines()
    assert all(line.startswith("secagg ") for line in lines)
    return [[sys.executable, "-m", "secagg.cli", *shlex.split(line)[1:]] for line in lines]


@contextmanager
def serving(command: list[str], folder: Path, environment: dict[str, str]) -> Iterator[None]:
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert "serving on" in process.stdout.readline()
            yield
        finally:
            process.kill()


def averaged(code: str, options: dict[str, dict[str, Any]], rounds: int) -> tuple[Any, float]:
    """The task after plain averaging, whose model holds the mean; and the largest weighted change of any round."""
    module = types.ModuleType("centres")
    exec(code, module.__dict__)
    tasks = [module.Centres(**given) for given in options.values()]
    largest = 0.0
    for round in range(rounds):
        for task in tasks:
            before = {name: value.copy() for name, value in task.model.items()}
            task.train(round)
            changes = [np.abs(task.model[name] - before[name]).max() for name in before]
            largest = max(largest, task.examples * float(max(changes)))
        total = sum(task.examples for task in tasks)
        mean = {name: sum(t.examples / total * t.model[name] for t in tasks) for name in tasks[0].model}
        for task in tasks:
            task.model.update({name: value.astype(np.float32) for name, value in mean.items()})
    return tasks[0], largest


#: What a site says of its own update alone.
OWN = re.compile(r"^.* bits a value.*\n", re.MULTILINE)


def shared(output: str) -> str:
    """What all sites say alike."""
    return OWN.sub("", output)


def test_the_federation_of_the_page(tmp_path: Path) -> None:
    environment = {**os.environ, "SECAGG_PASSPHRASE": "a passphrase for this test"}

    def run(command: list[str]) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    for name, text in files():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert {path.name for path in tmp_path.iterdir()} == {"centres.py", "shapes.yaml", "project.yaml"}
    todo = commands(free_port())
    names = [command[3] for command in todo]
    assert names == ["plan", "provision", "unpack", "serve", "unpack", "unpack", "unpack", "site", "site", "site"]
    for command in todo[:3]:
        run(command)
    with serving(todo[3], tmp_path, environment), ThreadPoolExecutor(3) as pool:
        for command in todo[4:7]:
            run(command)
        outputs = list(pool.map(run, todo[7:]))

    models = [safetensors.numpy.load_file(tmp_path / f"{site}.safetensors") for site in SITES]
    for site, model, output in zip(SITES, models, outputs, strict=True):
        assert stat.S_IMODE((tmp_path / f"{site}.safetensors").stat().st_mode) == 0o600
        assert (tmp_path / f"{site}.safetensors").read_bytes() == (tmp_path / "site-1.safetensors").read_bytes()
        assert [value.dtype.name for value in model.values()] == ["float32", "float32"]
        assert shared(output) == shared(outputs[0])
        assert len(OWN.findall(output)) == output.count("sum of 3 updates")

    given = {}
    for command in todo[7:]:
        options = dict(
            word.split("=") for word, before in zip(command[1:], command, strict=False) if before == "--option"
        )
        given[command[4]] = {name: int(value) for name, value in options.items()}
    rounds = int(todo[7][todo[7].index("--rounds") + 1])
    expected, largest = averaged(dict(files())["centres.py"], given, rounds)
    config = ProjectFile.load(tmp_path / "project.yaml").config
    total = sum(options["examples"] for options in given.values())
    error = codec_for(config.params, config.aggregation).mean_error(3, total, 2 * largest)  # bins are half an octave
    # Gradient descent on a convex loss carries an error on, and makes none larger (Nesterov 2004, theorem 2.1.15).
    for name, value in expected.model.items():
        np.testing.assert_allclose(models[0][name], value, atol=rounds * error + 1e-5)
    accuracy = expected.validate()["accuracy"]
    assert accuracy > 0.9
    shown = [float(number) for number in re.findall(r"accuracy (0\.\d{4})", outputs[0])]
    assert abs(shown[-1] - accuracy) < 0.01
    # The line that the page shows, but for what rounding may change.
    (line,) = re.findall(r"`(round 0 .* verified)`", PAGE)
    before, number, after = re.split(r"(0\.\d{4})", line)
    assert re.search(f"^{re.escape(before)}0\\.\\d{{4}}{re.escape(after)}$", outputs[0], re.MULTILINE)
    assert abs(shown[0] - float(number)) < 0.01


def test_the_table_names_what_the_protocol_has() -> None:
    from secagg.site.task import Task

    rows = set(re.findall(r"^\| `(\w+)(?:\(\w*\))?` \|", PAGE, re.MULTILINE))
    assert rows == {*Task.__annotations__, "train", "validate"}


def test_the_configuration_of_the_page() -> None:
    import yaml

    (project,) = (yaml.safe_load(text) for text in blocks("yaml") if "aggregation" in text)
    assert (
        Config.from_dict({name: project[name] for name in ("he", "encrypt", "aggregation")}).params.scheme == "FLASHE"
    )
