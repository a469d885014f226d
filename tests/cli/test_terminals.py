"""No command ends because the terminal lacks a character, and files do not depend on the terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from provisioned import COMMANDS, PROJECT, Federation

import secagg as library
from secagg.setup.packing import pack
from secagg.trust.kit import load_site_kit
from secagg.ui.tables import Row, print_table
from secagg.ui.terminal import accept_any_text

C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
TERMINALS = {
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "C": C_LOCALE,
}

#: Of tensors: one that Latin-1 has, one that it has not.
NAMES = ("größe", "层.weight")

terminals = pytest.mark.parametrize("terminal", TERMINALS.values(), ids=TERMINALS)


def run(
    folder: Path, terminal: dict[str, str], *arguments: object, code: str = "", **variables: str
) -> subprocess.CompletedProcess[bytes]:
    """Run the command line, or `code`, in a process of its own under another encoding."""
    python = ["-c", code] if code else ["-m", "secagg.cli"]
    result = subprocess.run(
        [sys.executable, *python, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, **terminal, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=600,
        check=False,
    )
    assert b"Traceback" not in result.stderr, result.stderr.decode("latin-1")
    assert b"Error:" not in result.stderr, result.stderr.decode("latin-1")
    if "latin-1" not in terminal.values():
        (result.stdout + result.stderr).decode("ascii")
    return result


@terminals
def test_help(tmp_path: Path, terminal: dict[str, str]) -> None:
    """All in one process: starting one takes longer."""
    code = f"""
from contextlib import suppress
from secagg.cli import main
for command in {[[], *([name] for name in COMMANDS)]!r}:
    with suppress(SystemExit):
        main([*command, "--help"])
"""
    result = run(tmp_path, terminal, code=code)
    assert result.returncode == 0
    assert result.stdout.count(b"usage: secagg") == 1 + len(COMMANDS)
    assert b"shape: ..." in result.stdout  # of `plan --help`


@terminals
def test_plan_with_names_that_the_terminal_lacks(tmp_path: Path, terminal: dict[str, str]) -> None:
    tensors = {name: torch.ones(10) for name in NAMES}
    torch.save(tensors, tmp_path / "modèle.pt")
    np.savez(tmp_path / "update.npz", **{name: np.full(10, 40.0**number) for number, name in enumerate(NAMES)})
    arguments = ("modèle.pt", "--sites", 3, "--updates", "update.npz", "--out", "plan.yaml")
    result = run(tmp_path, terminal, "plan", *arguments)
    assert result.returncode == 0, result.stderr
    assert b"x raw" in result.stdout or "× raw".encode("latin-1") in result.stdout
    assert "größe ".encode("latin-1") in result.stdout or rb"gr\xf6\xdfe " in result.stdout
    assert library.Config.load(tmp_path / "plan.yaml").aggregation.precision == "auto"
    again = run(tmp_path, terminal, "plan", *arguments)
    assert again.returncode == 2
    missing = run(tmp_path, terminal, "plan", "层.pt", "--sites", 3)
    assert missing.returncode == 7
    assert b"No such file" in missing.stderr


@terminals
def test_inspect_and_backends(tmp_path: Path, terminal: dict[str, str]) -> None:
    he, numbers = {"preset": "smallest"}, {"max_abs": 8.0}
    config = library.Config.from_dict({"he": he, "encrypt": {"include": [NAMES[0]]}, "aggregation": numbers})
    site = library.Client(config, library.generate_keys(config).client, "a")
    site.encrypt_to(tmp_path / "update.secagg", {name: np.ones(10, np.float32) for name in NAMES})
    result = run(tmp_path, terminal, "inspect", "update.secagg")
    assert result.returncode == 0, result.stderr
    assert rb"\u5c42.weight  float32[10]" in result.stdout
    assert run(tmp_path, terminal, "backends").returncode == 0


@terminals
def test_a_kit_and_its_passphrase(tmp_path: Path, made: Federation, terminal: dict[str, str]) -> None:
    """The same in every locale, from the environment or a file; a project's file that names a model, too."""
    pack(made["a"], tmp_path / "klinik-ä.kit", "größer als zwölf")
    result = run(tmp_path, terminal, "unpack", "klinik-ä.kit", SECAGG_PASSPHRASE="größer als zwölf")
    assert result.returncode == 0, result.stderr
    assert load_site_kit(tmp_path / "klinik-ä").name == "a"
    (tmp_path / "passphrase").write_text("größer als zwölf\n", encoding="utf-8")
    arguments = ("--out", "b", "--passphrase-file", "passphrase")
    assert run(tmp_path, terminal, "unpack", "klinik-ä.kit", *arguments).returncode == 0
    assert run(tmp_path, terminal, "doctor", "klinik-ä").returncode == 0
    (tmp_path / "project.yaml").write_text(f"{yaml.safe_dump(PROJECT)}\nmodel: modèle.npz\n", encoding="utf-8")
    missing = run(tmp_path, terminal, "provision", "project.yaml", "--out", "kits")
    assert missing.returncode == 7
    assert b"cannot read" in missing.stderr


def test_a_passphrase_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.kit").touch()
    result = run(tmp_path, C_LOCALE, "unpack", "a.kit", SECAGG_PASSPHRASE=os.fsdecode(b"gr\xf6\xdfer als zw\xf6lf"))
    assert result.returncode == 3
    assert b"the variable SECAGG_PASSPHRASE is not text in UTF-8" in result.stderr


@pytest.mark.parametrize("terminal", [TERMINALS["ascii"], C_LOCALE], ids=["ascii", "C"])
def test_a_passphrase_that_is_typed(tmp_path: Path, made: Federation, terminal: dict[str, str]) -> None:
    pack(made["a"], tmp_path / "a.kit", "größer als zwölf")
    here, there = pty.openpty()
    with os.fdopen(here, "r+b", buffering=0) as keyboard, os.fdopen(there, "r+b", buffering=0) as terminal_end:
        command = subprocess.Popen(
            [sys.executable, "-m", "secagg.cli", "unpack", "a.kit"],
            cwd=tmp_path,
            env={**os.environ, **terminal},
            stdin=terminal_end,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # without the terminal of whoever runs the tests
        )
        with command as process:
            assert process.stderr is not None
            os.read(process.stderr.fileno(), 1000)  # the question: what is typed before it is thrown away
            keyboard.write("größer als zwölf\n".encode())
            _, errors = process.communicate(timeout=240)
    assert process.returncode == 2, errors
    assert b"has characters that the locale lacks; set SECAGG_PASSPHRASE or use --passphrase-file" in errors
    assert b"zw" not in errors


def test_names_of_files_that_are_no_text(tmp_path: Path) -> None:
    """On a terminal that has all characters: a name of bytes that are none is shown, and written, escaped."""
    name = os.fsdecode(b"gr\xf6\xdfe.yaml")
    (tmp_path / name).write_text("w: [3]\n")
    result = run(tmp_path, {"PYTHONIOENCODING": "latin-1"}, "plan", name, "--sites", 3, "--out", "plan.yaml")
    assert result.returncode == 0, result.stderr
    assert rb"gr\udcf6\udcdfe.yaml" in result.stdout
    assert r"gr\udcf6\udcdfe.yaml" in (tmp_path / "plan.yaml").read_text(encoding="utf-8")
    assert library.Config.load(tmp_path / "plan.yaml").aggregation.max_clients == 3


def test_streams_of_another_kind_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (None, object()):
        monkeypatch.setattr(sys, "stdout", stream)
        accept_any_text()


def test_a_table_is_not_cut_for_a_dumb_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    print_table(["setting"], ["number"] * 12, [Row(["a"] + ["1234567.89"] * 12)])
    assert capsys.readouterr().out.count("1234567.89") == 12
