"""The package costs nothing until it is used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import secagg.integrations.monai

ROOT = Path(__file__).resolve().parents[3]


def test_import_loads_no_torch() -> None:
    code = "import sys, secagg.integrations.monai; print({'torch', 'ignite', 'monai', 'nilearn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


def test_the_server_of_filters_needs_no_torch() -> None:
    code = "import sys; from secagg.integrations.monai import to_weights; from secagg.server import Relay\n"
    code += "print({'torch', 'ignite', 'monai'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


def test_public_names() -> None:
    assert secagg.integrations.monai.__all__ == [
        "SecAggHandler",
        "SecureSite",
        "Segmentation",
        "federate",
        "to_weights",
    ]
    assert secagg.integrations.monai.SecAggHandler.__name__ == "SecAggHandler"
    with pytest.raises(AttributeError, match="Missing"):
        secagg.integrations.monai.Missing  # noqa: B018
