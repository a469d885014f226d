"""Federations that the tests of Flower share; a site's kit is only read, but for its count of failures."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from flower_nodes import federate
from provisioned import Federation


@pytest.fixture(scope="session")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return federate(tmp_path_factory.mktemp("flower"), 10)


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No shell declares a simulation, and a test that has stopped the garbage collector starts it again."""
    monkeypatch.delenv("SECAGG_SIMULATION", raising=False)
    monkeypatch.delenv("SECAGG_KIT", raising=False)
    yield
    gc.enable()
