"""The demo with few bits a value and error feedback: the Dice that it reaches, beside the raw run's."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import yaml

from secagg.bench.settings import SETTINGS


@pytest.mark.parametrize("backend", ["seal-bgv-10", "flashe-11"])
def test_dice(backend, benchmark, message, report, progress, tmp_path):
    """``secagg demo --config FILE``, with the demo's own bounds."""
    aggregation = {"min_clients": 2, "max_clients": 30, "max_abs": 0.5, "max_weight": 32}
    path, out = tmp_path / "config.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump({"he": SETTINGS[backend].he, "aggregation": aggregation}))
    command = [sys.executable, "-m", "secagg.cli", "demo", "--config", str(path), "--run-dir", str(out)]
    progress("two federations train")
    benchmark.pedantic(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))
    runs = json.loads((out / "report.json").read_text())["runs"]
    ours, raw = (runs[name][-1]["dice"] for name in ("encrypted", "raw"))
    assert raw > 0.8  # a model that has learned
    message(runs["encrypted"][-1]["nbytes"])
    benchmark.extra_info.update(dice=ours, raw_dice=raw)
    del benchmark.extra_info["peak_nbytes"]  # of the process that waits
    report.measure(f"dice-{backend}", abs(raw - ours), f"{ours:.4f}, raw {raw:.4f}")
