"""What the JSON of the benchmarks says beside times: size and precision of a message, memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: Beside the benchmarks, so that it has their fixtures: of a message of 64 kB, whose work needs 40 MB.
SMALL = """
import numpy as np

import secagg


def test_small(compare, message, decrypted, configure, make_keys):
    config, keys = configure("flashe-16"), make_keys("flashe-16")
    site = secagg.Client(config, keys.client, "site-1")
    state = {"w": np.full(10_000, 0.3, np.float32), "b": np.zeros(10, np.float32)}

    def work():
        np.ones(5_000_000)
        return site.encrypt(state).to_bytes()

    outcome = compare(work, lambda: np.ones(20_000_000), rounds=2)
    message(outcome.result, decrypted(config, keys, outcome.result, state), state)


def test_elsewhere(benchmark, message):
    benchmark.pedantic(lambda: None)
    message(12, {"w": [1.0, 3.99]}, {"w": [1.0, 4.0]}, peak=345)
"""


def test_every_benchmark_says_what_it_costs(tmp_path: Path) -> None:
    """Run away from the checkout, whose last results stay."""
    shutil.copytree(ROOT / "benchmarks", tmp_path / "benchmarks")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "benchmarks" / "bench_small.py").write_text(SMALL, encoding="utf-8")
    names = ("bench_small.py", "bench_kernels.py::test_word_macs")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTEST_XDIST_WORKER", None)  # beside other tests, no benchmark would be timed
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--benchmark-json=found.json"),
            *(f"benchmarks/{name}" for name in names),
        ],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    rows = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["benchmarks"]
    small, elsewhere, kernel = (row["extra_info"] for row in rows)
    assert 20_000 < small["nbytes"] < 40_000
    assert 9 < small["precision_bits"] < 13  # of 16 bits to 8, for values of 0.3
    assert 30e6 < small["peak_nbytes"] < 80e6, "of ours, not of what it stands beside"
    assert small["ratio"] > 0
    assert elsewhere == {"peak_nbytes": 345, "nbytes": 12, "precision_bits": 8.6}
    assert "peak_nbytes" in kernel
    assert "nbytes" not in kernel, "a kernel has no message"
