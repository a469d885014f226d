"""Two sites whose trainers take part by a callback, over gRPC, and what each has trained before it is sent."""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hanging import watched
from provisioned import Federation
from served import Served

from secagg.integrations.grpc import SiteSession
from secagg.trust import Tls, load_site_kit

#: Examples of each site, and so its weight.
SITES = {"a": 6, "b": 10}
ROUNDS = 2


@dataclass
class Sites:
    """Kits of the sites, and a server; `trained` is what each epoch has left at a site, before it is sent."""

    kits: Federation
    server: Served
    trained: dict[str, list[dict[str, torch.Tensor]]] = field(default_factory=lambda: {name: [] for name in SITES})

    def __getitem__(self, name: str) -> Path:
        return self.kits[name]

    def session(self, name: str) -> SiteSession:
        kit = load_site_kit(self[name])
        return SiteSession(self.server.address, name, tls=Tls.load(kit.tls), timeout=60, project=kit.project)

    def keep(self, name: str, network: torch.nn.Module) -> None:
        self.trained[name].append(copy.deepcopy(network.state_dict()))

    def run(self, work: Callable[[str, SiteSession], Any]) -> None:
        """Let each site work in a thread; no round ends before both have joined."""
        with ThreadPoolExecutor(len(SITES)) as pool:
            sessions = {name: self.session(name) for name in SITES}
            for session in sessions.values():
                session.join()
            futures = {name: pool.submit(work, name, session) for name, session in sessions.items()}
            wait(futures.values(), return_when=FIRST_EXCEPTION)
            for session in sessions.values():  # who still waits for one that has failed, does so no more
                session.close()
            for future in sorted(futures.values(), key=Future.done, reverse=True):
                future.result(100)

    def wait_for_an_update(self, session: SiteSession) -> None:
        deadline = time.monotonic() + 60
        while not session.status().added:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def assert_mean(self, models: dict[str, dict[str, torch.Tensor]], begun: dict[str, torch.Tensor]) -> None:
        """Hold what all sites have in the end against the plain mean of what they have trained last."""
        assert all(len(states) == ROUNDS for states in self.trained.values())
        total = sum(SITES.values())
        for name, value in models["a"].items():
            assert torch.equal(value, models["b"][name]), name
            if value.is_floating_point():
                mean = sum(SITES[site] / total * self.trained[site][-1][name].double() for site in SITES)
                torch.testing.assert_close(value.double(), mean, rtol=0, atol=1e-4)
        assert max(float((value - begun[name]).abs().max()) for name, value in models["a"].items()) > 0.01


@pytest.fixture(scope="session")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    aggregation = {"min_clients": 2, "max_clients": 3}  # scales are measured in each round
    he = {"lib": "flashe", "config": {"value_bits": 20, "rounding": "nearest"}}
    folder = tmp_path_factory.mktemp("kits")
    return Federation.make(folder, hosts=["127.0.0.1"], sites=list(SITES), he=he, aggregation=aggregation)


@pytest.fixture
def sites(kits: Federation, tmp_path: Path) -> Iterator[Sites]:
    shutil.copytree(kits.kits, tmp_path / "kits")
    own = Federation(kits.provisioner, tmp_path / "kits")
    with watched(), Served(own["server"], tmp_path / "server", ("--round-timeout", 60)) as server:
        yield Sites(own, server)
