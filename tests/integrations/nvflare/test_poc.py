"""The job of test_simulator in POC: processes, TLS, and kits as `nvflare provision` makes them.

Its short form is test_rounds_with_provisioned_kits of test_provision, and the simulator.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import nvflare.lighter
import nvflare_script
import pytest
import yaml
from nvflare_job import FLASHE, SITES

SUPPORT = Path(nvflare_script.__file__).parent

AGGREGATION = {"min_clients": 3, "max_clients": 5, "max_abs": 1.0, "max_weight": 15, "precision": "fixed"}


def project() -> str:
    """Return NVFlare's own project.yml with three sites and our builder."""
    file = Path(nvflare.lighter.__file__).parent / "dummy_project.yml"
    found = yaml.safe_load(file.read_text())
    others = [party for party in found["participants"] if party["type"] != "client"]
    found["participants"] = others + [{"name": name, "type": "client", "org": "nvidia"} for name in SITES]
    at = [builder["path"].rpartition(".")[2] for builder in found["builders"]].index("CertBuilder")
    ours = {"path": "secagg.integrations.nvflare.SecAggBuilder", "args": {"he": FLASHE, "aggregation": AGGREGATION}}
    found["builders"].insert(at + 1, ours)
    return yaml.safe_dump(found)


@pytest.mark.long
def test_poc(tmp_path: Path) -> None:
    (tmp_path / "project.yml").write_text(project())
    for folder in ("home", "notes"):
        (tmp_path / folder).mkdir()
    work = tmp_path / "work"
    done = subprocess.run(
        [sys.executable, SUPPORT / "nvflare_submit.py", tmp_path / "project.yml", work, tmp_path / "notes", "3"],
        cwd=tmp_path,
        env=os.environ
        | {"HOME": str(tmp_path / "home"), "NVFLARE_POC_WORKSPACE": str(work)}
        | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
        | {"PYTHONPATH": os.pathsep.join([str(SUPPORT.parents[1]), str(SUPPORT)])},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert "FINISHED:COMPLETED" in done.stdout, (done.stdout + done.stderr)[-5000:]
    notes = [(tmp_path / "notes" / site).read_text() for site in SITES]
    assert len(notes[0].splitlines()) == 3
    assert notes[0] == notes[1] == notes[2]
    kits = work / "example_project" / "prod_00"
    models = [np.load(next((kits / site).glob("*/global_model.npz"))) for site in SITES]
    for model in models:
        np.testing.assert_array_equal(model["0.weight"], models[0]["0.weight"])
    assert len(list(kits.glob("admin*/transfer/*/workspace/aggregate-*.secagg"))) == 3
