"""A federation of three sites, and a job in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nvflare_job import AGGREGATION, FLASHE, SITES, Server, Site, first_model
from provisioned import Federation


@pytest.fixture(scope="session")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """A federation that tests share: they leave nothing in its kits."""
    folder = tmp_path_factory.mktemp("nvflare")
    return Federation.make(folder, sites=list(SITES), he=FLASHE, aggregation=AGGREGATION)


@pytest.fixture
def job(kits: Federation, tmp_path: Path) -> Callable[..., tuple[Server, list[Site]]]:
    """Make the server and the sites of a job."""

    def make(federation: Federation = kits, first: Any = None, **options: Any) -> tuple[Server, list[Site]]:
        first = first_model() if first is None else first
        server = Server(tmp_path / "server", federation["server"], first, SITES, **options)
        return server, [Site(tmp_path / name, name, federation[name]) for name in SITES]

    return make
