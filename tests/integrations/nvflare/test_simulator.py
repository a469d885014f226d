"""The HE job of NVFlare's documentation, which refuses its simulator, ported and in the simulator."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import nvflare_script
import pytest
import torch
from nvflare_job import FLASHE, SITES
from provisioned import CLARA, Federation

SUPPORT = Path(nvflare_script.__file__).parent

AGGREGATION = {"min_clients": 3, "max_clients": 5, "max_abs": 1.0, "max_weight": 15}


def simulate(folder: Path, he: dict[str, Any], clients: int = 3) -> subprocess.CompletedProcess[str]:
    """Run the job; sites note what they have received."""
    federation = Federation.make(folder / "federation", sites=list(SITES), he=he, aggregation=AGGREGATION)
    (folder / "notes").mkdir()
    return subprocess.run(
        [sys.executable, SUPPORT / "nvflare_submit.py", "simulator", folder / "work", folder / "notes", str(clients)],
        cwd=folder,
        env=os.environ
        | {"SECAGG_SIMULATION": "1", "SECAGG_KIT": f"{federation.kits}/{{site}}"}
        | {"PYTHONPATH": os.pathsep.join([str(SUPPORT.parents[1]), str(SUPPORT)])},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def unencrypted() -> tuple[list[float], dict[str, torch.Tensor]]:
    """Return the accuracies of the same rounds in the clear, and the model in the end."""
    state, accuracies = nvflare_script.network().state_dict(), []
    for round in range(3):
        sent = []
        for site in SITES:
            net = nvflare_script.network()
            net.load_state_dict(state)
            accuracy, steps = nvflare_script.train(net, site, round)
            sent.append((steps, net.state_dict()))
        accuracies.append(accuracy)
        total = sum(steps for steps, _ in sent)
        state = {name: sum(steps / total * one[name] for steps, one in sent) for name in state}
    return accuracies, state


def test_the_he_job_of_the_documentation(tmp_path: Path) -> None:
    """Clara's parameters, three clients and rounds: one run, for all that there is to see of it."""
    done = simulate(tmp_path, CLARA["he"])
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    job = tmp_path / "work" / "fedavg_secagg"
    accuracies, state = unencrypted()
    assert accuracies[-1] > accuracies[0] + 0.3
    for site in SITES:
        rounds = [line.split(maxsplit=2) for line in (tmp_path / "notes" / site).read_text().splitlines()]
        assert [float(accuracy) for _, accuracy, _ in rounds] == accuracies  # as unencrypted, to the last bit
        means = [ast.literal_eval(metrics) for _, _, metrics in rounds]
        assert means[0] == {}
        for mean, before in zip(means[1:], accuracies, strict=False):  # all sites have measured the same model
            assert mean == {"accuracy": pytest.approx(before, abs=1e-6)}
        with np.load(job / site / "simulate_job" / "global_model.npz") as model:
            assert list(model) == list(state)
            for name, value in state.items():
                if model[name].dtype.kind == "f":  # the site keeps its own integers
                    np.testing.assert_allclose(model[name], value.numpy(), atol=1e-6)
    server = job / "server"
    assert {path.name for path in server.rglob("aggregate-*")} == {f"aggregate-{round}.secagg" for round in range(3)}
    assert [path.name for path in server.rglob("*.np*")] == ["first.npz"]  # in the clear, as all sites get it
    assert {path.name for path in job.rglob("custom/**/*.py")} == {"nvflare_script.py"}  # no source of ours


def test_too_few_results_fail_the_job(tmp_path: Path) -> None:
    """The federation wants three sites, whatever the job says."""
    done = simulate(tmp_path, FLASHE, clients=1)
    log = done.stdout + done.stderr
    assert done.returncode != 0, log[-3000:]
    assert "QuorumError" in log
    assert "min_clients" in log
    assert not list(tmp_path.rglob("aggregate-*.secagg"))
