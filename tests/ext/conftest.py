"""Every test that takes `ext` runs on both implementations; a compiled one that is not built fails."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest


@pytest.fixture(scope="session", params=["cython", "numpy"])
def ext(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(f"secagg_ext._{request.param}")
