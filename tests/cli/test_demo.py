"""The demo, as a newcomer runs it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from provisioned import CLARA, Secagg

from secagg.cli.demo import demo_config

PNG = b"\x89PNG\r\n\x1a\n"


def report_of(folder: Path) -> dict[str, Any]:
    """What a demo reports, whose sites end with the same model."""
    report: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert (folder / "curves.png").read_bytes().startswith(PNG)
    for run in ("encrypted", "raw"):
        sites = [path.read_text(encoding="utf-8").splitlines() for path in (folder / run).glob("site-*.jsonl")]
        assert len(sites) >= 2
        assert len({json.loads(lines[-1])["metrics"]["dice"] for lines in sites}) == 1
    return report


def test_encrypted_training_is_as_good_as_raw(secagg: Secagg, tmp_path: Path) -> None:
    result = secagg("demo", "--sites", 3, "--rounds", 2, "--run-dir", "run", timeout=3600)
    assert result.returncode == 0, result.stderr
    runs = report_of(tmp_path / "run")["runs"]
    encrypted, raw = runs["encrypted"], runs["raw"]
    assert [row["round"] for row in encrypted] == [row["round"] for row in raw] == [0, 1]
    assert encrypted[-1]["dice"] >= 0.75
    assert abs(encrypted[-1]["dice"] - raw[-1]["dice"]) <= 0.02
    assert raw[0]["nbytes"] == 4 * 108_346 + 8
    assert all(
        row[f"{step}_seconds"] > 0 for row in encrypted for step in ("train", "encrypt", "upload", "add", "decrypt")
    )
    titles = ["run", "round", "Dice", "MB", "train", "encrypt", "upload", "add", "decrypt"]
    assert titles in [line.split() for line in result.stdout.splitlines()]
    assert max(len(line) for line in result.stdout.splitlines() if "run" not in line.split("/")) <= 80
    # The server's folder and logs hold neither the secret key nor anything that decrypts.
    secret = (tmp_path / "run" / "kits" / "site-1" / "he-client.key").read_bytes()[1000:1064]
    for path in [*(tmp_path / "run" / "server").rglob("*"), *(tmp_path / "run" / "kits" / "server").iterdir()]:
        assert path.is_dir() or secret not in path.read_bytes()


def test_all_sites_end_with_the_same_model(secagg: Secagg, tmp_path: Path) -> None:
    arguments = ("--sites", 2, "--rounds", 1, "--backend", "pyfhel", "--encrypt", "conv", "--run-dir", "run")
    result = secagg("demo", *arguments, timeout=1800)
    assert result.returncode == 0, result.stderr
    report = report_of(tmp_path / "run")
    assert report["config"]["he"]["lib"] == "pyfhel"
    assert report["config"]["encrypt"] == "conv"
    for run in ("encrypted", "raw"):
        sites = [json.loads((tmp_path / "run" / run / f"site-{n}.jsonl").read_text("utf-8")) for n in (1, 2)]
        assert sites[0]["metrics"] == sites[1]["metrics"]
        assert sites[0]["metrics"]["dice"] > 0


def test_a_preset_and_a_choice_of_layers(secagg: Secagg, tmp_path: Path) -> None:
    arguments = ("--sites", 2, "--rounds", 1, "--preset", "smallest", "--encrypt", "conv", "--run-dir", "run")
    result = secagg("demo", *arguments, timeout=1800)
    assert result.returncode == 0, result.stderr
    report = report_of(tmp_path / "run")
    assert report["config"]["he"]["lib"] == "flashe"
    assert report["config"]["encrypt"] == "conv"
    assert report["config"]["aggregation"]["precision"] == "auto"  # nobody has guessed anything
    assert report["config"]["he"]["config"]["value_bits"] == 6
    assert "flashe FLASHE of 6 bits, precision auto, encrypt conv" in result.stdout
    encrypted, raw = report["runs"]["encrypted"][0], report["runs"]["raw"][0]
    record = json.loads((tmp_path / "run" / "encrypted" / "site-1.jsonl").read_text("utf-8"))
    assert 0 < record["calibration_nbytes"] < record["nbytes"]
    assert record["calibrate_seconds"] > 0
    assert record["bits"] > 4
    assert record["clipped"] == 0
    assert encrypted["nbytes"] < raw["nbytes"]
    assert abs(encrypted["dice"] - raw["dice"]) <= 0.02


def test_values_that_a_site_clips_are_reported(secagg: Secagg, tmp_path: Path) -> None:
    """Of a file and another backend. Far below what a round changes: surely some values are beyond it, and not all."""
    he = {"lib": "pyfhel", "config": {"scheme": "BGV", "value_bits": 16, "overflow": "clip"}}
    config = {"he": he, "aggregation": {"max_abs": 0.01, "max_weight": 64}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    arguments = ("--sites", 2, "--rounds", 1, "--config", "c.yaml", "--backend", "seal", "--run-dir", "run")
    result = secagg("demo", *arguments, timeout=1800)
    assert result.returncode == 0, result.stderr
    he = report_of(tmp_path / "run")["config"]["he"]
    assert (he["lib"], he["config"]["overflow"]) == ("seal", "clip")
    for site in ("site-1", "site-2"):
        folder = tmp_path / "run" / "encrypted"
        clipped = json.loads((folder / f"{site}.jsonl").read_text("utf-8"))["clipped"]
        assert 0 < clipped < 108_346
        log = (folder / f"{site}.log").read_text("utf-8")
        assert re.search(
            rf"^round 0 \(1 of 1\): [\d.]+ bits a value, {clipped:,} of 108,346 clipped$", log, re.MULTILINE
        )
    assert json.loads((tmp_path / "run" / "raw" / "site-1.jsonl").read_text("utf-8"))["clipped"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset", "exact", "--backend", "seal"), "--preset names backend and params, and so does --backend"),
        (("--preset", "exact", "--config", "c.yaml"), "--preset names backend and params, and so does --config"),
        (("--backend", "flashe"), "--backend flashe knows FLASHE, not CKKS: use --preset smallest, or --config"),
        (("--backend", "nope"), "he.lib is 'nope'"),
        (("--sites", 25), "--sites is 25"),
    ],
)
def test_options_that_cannot_be(secagg: Secagg, tmp_path: Path, arguments: tuple[object, ...], message: str) -> None:
    result = secagg("demo", *arguments, "--run-dir", "run")
    assert result.returncode == 2
    assert message in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_config_under_another_backend(tmp_path: Path) -> None:
    """Pyfhel cannot make seeded updates, which are the default of TenSEAL."""
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(CLARA), encoding="utf-8")
    options = {"preset": None, "encrypt": None, "sites": 3, "config": tmp_path / "c.yaml"}
    seeded = {}
    for lib in (None, "tenseal", "seal", "pyfhel"):
        config = demo_config(Namespace(**options, backend=lib))
        assert config.lib == lib or lib is None
        assert config.aggregation.min_clients == 3
        seeded[lib] = config.params.to_dict()["seeded"]
    assert seeded == {None: True, "tenseal": True, "seal": True, "pyfhel": False}


def test_config_file_and_too_few_sites(secagg: Secagg, tmp_path: Path) -> None:
    aggregation = {**CLARA["aggregation"], "min_clients": 3}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**CLARA, "aggregation": aggregation}), encoding="utf-8")
    few = secagg("demo", "--config", "c.yaml", "--sites", 2)
    assert few.returncode == 2
    assert "min_clients is 3, the demo has 2 sites" in few.stderr
    aggregation = {**CLARA["aggregation"], "max_weight": 1.0}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**CLARA, "aggregation": aggregation}), encoding="utf-8")
    heavy = secagg("demo", "--config", "c.yaml", "--sites", 2, "--rounds", 1, "--run-dir", "run", timeout=1800)
    assert heavy.returncode == 1
    assert "is over aggregation.max_weight 1: set max_weight" in heavy.stderr  # the site's own words
    assert children_of(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_leaves_no_process_behind(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "secagg.cli", "demo", "--sites", "2", "--run-dir", str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as demo:
        assert demo.stderr is not None
        for line in demo.stderr:
            if line.startswith("encrypted: "):  # server and sites have been started
                break
        assert len(children_of(tmp_path)) == 3
        demo.send_signal(number)
        _, errors = demo.communicate(timeout=240)
    assert demo.returncode == 128 + number
    assert "secagg: stopped" in errors
    assert "Traceback" not in errors
    assert children_of(tmp_path) == []


def children_of(folder: Path) -> list[str]:
    """Return the command lines of server and sites that work in `folder`."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if any(word.startswith(str(folder)) and "kits" in word for word in words):
            found.append(" ".join(words))
    return found
