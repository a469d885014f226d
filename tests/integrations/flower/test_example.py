"""docs/examples/flower: two lines encrypt it, and it learns what the unencrypted app learns."""

from __future__ import annotations

import difflib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from flower_deployment import ROOT, environment, free_port, kill
from flower_example import APP, IMPORTS, LINES, Run, accuracies, copy_app, make_plain, node_configs
from provisioned import Federation

import secagg
from secagg.scheme.codec import codec_for

NODES = 3
SITES = tuple(f"site-{number}" for number in range(NODES))


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Kits of the example's federation."""
    project = yaml.safe_load((APP / "project.yaml").read_text())
    return Federation.make(tmp_path_factory.mktemp("federation"), **project)


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


def test_it_learns_what_the_unencrypted_app_learns(
    kits: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECAGG_SERVER_KIT", str(kits["server"]))
    nodes = node_configs({site: kits[site] for site in SITES})
    plain = Run(make_plain(copy_app(tmp_path)), nodes, 5, monkeypatch)
    encrypted = Run(APP, nodes, 5, monkeypatch)

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

    # What is sent, as docs/flower.md says: the update, and an envelope; one node a round sends its encrypted model too.
    for reply, size in encrypted.grid.replied:
        arrays = dict(reply.content.get("arrays", {}))
        if arrays:
            update = secagg.Update.from_bytes(arrays.pop("update").data)
            model = sum(len(array.data) for array in arrays.values())
            assert update.nbytes + model < size < update.nbytes + model + 1200
    page = (ROOT / "docs" / "flower.md").read_text()
    for run, words in (plain, "in the clear"), (encrypted, "here"):
        assert f"{run.grid.replied[0][1] / 1000:.1f} KB {words}" in page

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


@pytest.mark.long
def test_flwr_run_as_the_readme_has_it(kits: Federation, tmp_path: Path, shell: dict[str, str]) -> None:
    """All that it says to type, but what installs and what ends all SuperLinks of this user."""
    app = copy_app(tmp_path)
    text = (app / "README.md").read_text().replace("/tmp/digits-kits", str(tmp_path / "kits"))
    install, *todo, end = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    assert install.startswith("pip install '../../..[flower,grpc]'")
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
