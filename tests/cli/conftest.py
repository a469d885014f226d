from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

Secagg = Callable[..., "subprocess.CompletedProcess[str]"]

CLARA = {
    "he": {
        "lib": "tenseal",
        "config": {
            "poly_modulus_degree": 8192,
            "coeff_mod_bit_sizes": [60, 40, 40],
            "scale_bits": 40,
            "scheme": "CKKS",
        },
    },
    "aggregation": {"min_clients": 2, "max_clients": 30, "max_abs": 1.0, "max_weight": 64},
}


@pytest.fixture
def secagg(tmp_path: Path) -> Secagg:
    """Run the command line in a process of its own, in a folder of its own."""

    def run(*arguments: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "secagg.cli", *map(str, arguments)],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "federation.yaml"
    path.write_text(yaml.safe_dump(CLARA), encoding="utf-8")
    return path
