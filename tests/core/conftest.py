"""The contract: what asks for `lib` runs over every registered backend, what asks for `kernels` over both of these.

A backend that is registered but whose library is missing fails; nothing is skipped.
"""

from __future__ import annotations

import importlib

import pytest

import secagg
import secagg_ext

LIBS = sorted(secagg.available_backends())
KERNELS = [name for name in secagg_ext.__all__ if name != "IMPLEMENTATION"]


@pytest.fixture(scope="session", params=LIBS)
def lib(request: pytest.FixtureRequest) -> str:
    """The id of a backend."""
    return request.param


@pytest.fixture(params=["cython", "numpy"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test on one implementation of the kernels: secagg calls them as attributes of `secagg_ext`."""
    implementation = importlib.import_module(f"secagg_ext._{request.param}")
    for name in KERNELS:
        monkeypatch.setattr(secagg_ext, name, getattr(implementation, name))
    return request.param
