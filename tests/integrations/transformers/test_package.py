"""The package costs nothing until it is used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import secagg.integrations.transformers

ROOT = Path(__file__).resolve().parents[3]


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_import_loads_no_framework() -> None:
    code = "import sys, secagg.integrations.transformers; print({'torch', 'transformers'} & set(sys.modules))"
    assert run(code) == "set()"


def test_what_is_missing_is_named_with_its_extra() -> None:
    code = "import sys; sys.modules['transformers'] = None; import secagg.integrations.transformers as it\n"
    code += "try:\n    it.SecAggCallback\nexcept ImportError as error:\n    print(error)"
    assert run(code) == "secagg in Transformers needs transformers: install secagg[transformers]"


def test_public_names() -> None:
    assert secagg.integrations.transformers.__all__ == ["SecAggCallback"]
    assert secagg.integrations.transformers.SecAggCallback.__name__ == "SecAggCallback"
    with pytest.raises(AttributeError, match="Missing"):
        secagg.integrations.transformers.Missing  # noqa: B018
