"""The contract: what asks for `lib` runs over every backend and scheme, what asks for `kernels` over both of these.

A backend that is registered but whose library is missing fails; nothing is skipped.
"""

from __future__ import annotations

import importlib

import pytest
from federation import VARIANTS, libs_of

import secagg_ext

KERNELS = [name for name in secagg_ext.__all__ if name != "IMPLEMENTATION"]


@pytest.fixture(scope="session", params=VARIANTS)
def lib(request: pytest.FixtureRequest) -> str:
    """A variant: a backend and one of its schemes, as `federate` takes it."""
    return request.param


@pytest.fixture(scope="session", params=libs_of("CKKS"))
def ckks(request: pytest.FixtureRequest) -> str:
    """The id of a backend that knows CKKS."""
    return request.param


@pytest.fixture(params=["cython", "numpy"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test on one implementation of the kernels: secagg calls them as attributes of `secagg_ext`."""
    implementation = importlib.import_module(f"secagg_ext._{request.param}")
    for name in KERNELS:
        monkeypatch.setattr(secagg_ext, name, getattr(implementation, name))
    return request.param
