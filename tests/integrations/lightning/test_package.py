"""The package costs nothing until it is used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import secagg.integrations.lightning

ROOT = Path(__file__).resolve().parents[3]


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_import_loads_no_framework() -> None:
    code = "import sys, secagg.integrations.lightning; print({'torch', 'lightning'} & set(sys.modules))"
    assert run(code) == "set()"


def test_what_is_missing_is_named_with_its_extra() -> None:
    code = "import sys; sys.modules['lightning'] = None; import secagg.integrations.lightning as it\n"
    code += "try:\n    it.SecAggCallback\nexcept ImportError as error:\n    print(error)"
    assert run(code) == "secagg in Lightning needs lightning: install secagg[lightning]"


def test_public_names() -> None:
    assert secagg.integrations.lightning.__all__ == ["SecAggCallback"]
    assert secagg.integrations.lightning.SecAggCallback.__name__ == "SecAggCallback"
    with pytest.raises(AttributeError, match="Missing"):
        secagg.integrations.lightning.Missing  # noqa: B018
