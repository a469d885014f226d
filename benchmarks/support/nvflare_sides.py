"""A federated mean through NVFlare, by its own components and by ours: messages are what its FOBS makes of results."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Protocol
from unittest.mock import patch

from million import INITIAL, State, error_bound, limits
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.fl_constant import ReservedKey
from nvflare.app_common.utils.fl_model_utils import FLModelUtils
from nvflare.fuel.utils import fobs
from provisioned import Federation

from secagg.bench.peers.job import Job
from secagg.bench.peers.nvflare_raw import message_of
from secagg.integrations.nvflare import SecAggAggregator, SecAggPersistor
from secagg.integrations.nvflare.common import UPDATE, unpack
from secagg.protocol import Handout
from secagg.server import Relay
from secagg.site import Follower


class Side(Protocol):
    """Sites of one way to aggregate, and servers that all take each message, so that there is more to take a median of.

    Attributes
    ----------
    servers : list
        As many as were asked for.
    """

    servers: list[Any]

    def send(self, site: str, change: State, steps: int) -> bytes:
        """Return a site's message of this round."""

    def take(self, server: Any, message: bytes) -> None:
        """Read a message and add what it holds: what a server does for each client."""

    def finish(self) -> tuple[int, State]:
        """End the round: return the size of what a site is sent, and the mean that it reads in it."""

    @property
    def error_bound(self) -> float:
        """How far the mean may be off."""


class Peer:
    """NVFlare by its own components, as `secagg bench peers` measures it: raw, or with its HE and Clara's params."""

    def __init__(self, parts: ModuleType, folder: Path, sites: int, servers: int) -> None:
        job = Job("", {}, sites, str(folder))
        job.keys.mkdir(parents=True)
        self._site = parts.Site(job)
        self.servers = [parts.Server(job) for _ in range(servers)]
        self._reader = parts.Reader(job)

    def send(self, site: str, change: State, steps: int) -> bytes:
        return self._site.message(site, change, steps)

    def take(self, server: Any, message: bytes) -> None:
        server.take(message)

    def finish(self) -> tuple[int, State]:
        message, *_ = [server.result() for server in self.servers]
        return len(message), self._reader.read(message)

    @property
    def error_bound(self) -> float:
        return 1e-6


class SecAgg:
    """secagg in NVFlare, from kits with signatures; its servers are aggregators as a job has one."""

    def __init__(self, folder: Path, he: dict[str, Any], steps: dict[str, int], servers: int) -> None:
        federation = Federation.make(folder, sites=list(steps), he=he, aggregation=limits(steps))
        with patch("secrets.token_hex", return_value="bench"):  # one run, whose updates they all take
            relays = [Relay(federation["server"], INITIAL) for _ in range(servers)]
        self.servers = [make_aggregator(relay) for relay in relays]
        self._sites = {site: Follower(federation[site]) for site in steps}
        self._config, self._steps = relays[0].config, steps
        self._receive(relays[0].handout(None), INITIAL)

    def send(self, site: str, change: State, steps: int) -> bytes:
        local = {name: self._model[name] + change[name] for name in change}
        update = self._sites[site].encrypt(local, steps)
        return message_of(DXO(DataKind.WEIGHTS, {UPDATE: update}), site)

    def take(self, server: SecAggAggregator, message: bytes) -> None:
        result = fobs.loads(message)
        model = FLModelUtils.from_shareable(result)  # as BaseModelController has it
        model.meta["client_name"] = result.get_peer_prop(ReservedKey.IDENTITY_NAME, "?")
        server.accept_model(model)

    def finish(self) -> tuple[int, State]:
        models, before = [server.aggregate_model() for server in self.servers], self._model
        message = fobs.dumps(FLModelUtils.to_shareable(models[0]))
        handout, _, _ = unpack(from_shareable(fobs.loads(message)).data)
        self._receive(handout)
        return len(message), {name: self._model[name] - before[name] for name in before}

    @property
    def error_bound(self) -> float:
        return error_bound(self._config, self._steps)

    def _receive(self, handout: Handout, first: State | None = None) -> None:
        for follower in self._sites.values():
            self._model = follower.receive(handout, first)


def make_aggregator(relay: Relay) -> SecAggAggregator:
    """Return an aggregator in a job whose persistor has loaded a model."""
    persistor, aggregator = SecAggPersistor("first.npz"), SecAggAggregator()
    persistor.first, persistor.relay = INITIAL, relay
    engine = SimpleNamespace(get_component=lambda name: persistor, get_clients=list)
    aggregator.fl_ctx = SimpleNamespace(get_engine=lambda: engine)
    return aggregator
