"""The demo, as a newcomer runs it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from .conftest import CLARA, Secagg

PNG = b"\x89PNG\r\n\x1a\n"


def report_of(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert (folder / "curves.png").read_bytes().startswith(PNG)
    return report


def test_encrypted_training_is_as_good_as_raw(secagg: Secagg, tmp_path: Path) -> None:
    result = secagg("demo", "--sites", 3, "--rounds", 4, "--run-dir", "run", timeout=600)
    assert result.returncode == 0, result.stderr
    runs = report_of(tmp_path / "run")["runs"]
    encrypted, raw = runs["encrypted"], runs["raw"]
    assert [row["round"] for row in encrypted] == [row["round"] for row in raw] == [0, 1, 2, 3]
    assert encrypted[-1]["dice"] >= 0.75
    assert abs(encrypted[-1]["dice"] - raw[-1]["dice"]) <= 0.02
    assert raw[0]["nbytes"] == 4 * 108_346 + 8
    assert all(
        row[f"{step}_seconds"] > 0 for row in encrypted for step in ("train", "encrypt", "upload", "add", "decrypt")
    )
    for column in ("Dice", "message MB", "train s", "encrypt s", "upload s", "add s", "decrypt s"):
        assert column in result.stdout
    # The server's folder and logs hold neither the secret key nor anything that decrypts.
    secret = (tmp_path / "run" / "kits" / "site-1" / "client.key").read_bytes()[1000:1064]
    for path in [*(tmp_path / "run" / "server").rglob("*"), *(tmp_path / "run" / "kits" / "server").iterdir()]:
        assert path.is_dir() or secret not in path.read_bytes()


def test_all_sites_end_with_the_same_model(secagg: Secagg, tmp_path: Path) -> None:
    arguments = ("--sites", 2, "--rounds", 1, "--backend", "pyfhel", "--encrypt", "conv", "--run-dir", "run")
    result = secagg("demo", *arguments, timeout=300)
    assert result.returncode == 0, result.stderr
    report = report_of(tmp_path / "run")
    assert report["config"]["he"]["lib"] == "pyfhel"
    assert report["config"]["encrypt"] == "conv"
    for run in ("encrypted", "raw"):
        sites = [json.loads((tmp_path / "run" / run / f"site-{n}.jsonl").read_text("utf-8")) for n in (1, 2)]
        assert sites[0]["dice"] == sites[1]["dice"] > 0


def test_config_file_and_too_few_sites(secagg: Secagg, tmp_path: Path) -> None:
    aggregation = {**CLARA["aggregation"], "min_clients": 3}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**CLARA, "aggregation": aggregation}), encoding="utf-8")
    few = secagg("demo", "--config", "c.yaml", "--sites", 2)
    assert few.returncode == 2
    assert "min_clients is 3, the demo has 2 sites" in few.stderr
    aggregation = {**CLARA["aggregation"], "max_weight": 1.0}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**CLARA, "aggregation": aggregation}), encoding="utf-8")
    heavy = secagg("demo", "--config", "c.yaml", "--sites", 2, "--rounds", 1, "--run-dir", "run", timeout=300)
    assert heavy.returncode == 1
    assert "is over aggregation.max_weight 1: set max_weight" in heavy.stderr  # the site's own words
    assert children_of(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_leaves_no_process_behind(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "secagg.cli", "demo", "--sites", "2", "--run-dir", str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as demo:
        deadline = time.monotonic() + 60
        while len(children_of(tmp_path)) < 3:
            assert time.monotonic() < deadline, "server and sites did not start"
            assert demo.poll() is None
            time.sleep(0.1)
        demo.send_signal(number)
        _, errors = demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert "secagg: stopped" in errors
    assert "Traceback" not in errors
    assert children_of(tmp_path) == []


def children_of(folder: Path) -> list[str]:
    """Return the command lines of server and sites that work in `folder`."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        if any(word.startswith(str(folder)) and "kits" in word for word in words):
            found.append(" ".join(words))
    return found
