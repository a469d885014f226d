"""A federated mean through NVFlare, by its own components and by ours: messages are what its FOBS makes of results."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol
from unittest.mock import patch

import numpy as np
import tenseal as ts
from million import INITIAL, State, error_bound, limits
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.aggregators.intime_accumulate_model_aggregator import InTimeAccumulateWeightedAggregator
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.decomposers import numpy_decomposers
from nvflare.app_common.utils.fl_model_utils import FLModelUtils
from nvflare.app_opt.he.intime_accumulate_model_aggregator import HEInTimeAccumulateWeightedAggregator
from nvflare.app_opt.he.model_encryptor import HEModelEncryptor
from nvflare.fuel.utils import fobs
from nvflare.lighter.impl.he import HEBuilder
from provisioned import Federation

from secagg.bench.settings import CLARA
from secagg.integrations.nvflare import SecAggAggregator, SecAggPersistor
from secagg.integrations.nvflare.common import UPDATE, unpack
from secagg.protocol import Handout
from secagg.server import Relay
from secagg.site import Follower

numpy_decomposers.register()  # as each of its processes does at its start


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


class Clear:
    """NVFlare, as it is."""

    _make_aggregator: Callable[..., InTimeAccumulateWeightedAggregator] = InTimeAccumulateWeightedAggregator
    _weighs = True  # the server does

    def __init__(self, sites: list[str], servers: int) -> None:
        self._context = FLContext()
        self._context.set_prop(AppConstants.CURRENT_ROUND, 0)
        weights = dict.fromkeys(sites, 1.0)
        make = partial(type(self)._make_aggregator, aggregation_weights=weights, weigh_by_local_iter=self._weighs)
        self.servers = [make() for _ in range(servers)]
        for server in self.servers:
            server.handle_event(EventType.START_RUN, self._context)

    def send(self, site: str, change: State, steps: int) -> bytes:
        dxo = DXO(DataKind.WEIGHT_DIFF, dict(change), {MetaKey.NUM_STEPS_CURRENT_ROUND: steps})
        return message_of(self._filter(dxo, site), site)

    def take(self, server: InTimeAccumulateWeightedAggregator, message: bytes) -> None:
        assert server.accept(fobs.loads(message), self._context)

    def finish(self) -> tuple[int, State]:
        message, *_ = [fobs.dumps(server.aggregate(self._context)) for server in self.servers]
        mean = from_shareable(fobs.loads(message)).data
        return len(message), {name: self._read(value) for name, value in mean.items()}

    @property
    def error_bound(self) -> float:
        return 1e-6

    def _filter(self, dxo: DXO, site: str) -> DXO:
        return dxo

    def _read(self, value: Any) -> np.ndarray:
        return np.asarray(value)


class OwnHE(Clear):
    """NVFlare's HE, with Clara's params; what its provisioning makes is the context."""

    _make_aggregator = HEInTimeAccumulateWeightedAggregator
    _weighs = False  # the site does, before it encrypts

    def __init__(self, sites: list[str], servers: int) -> None:
        super().__init__(sites, servers)
        builder = HEBuilder(**CLARA)
        builder.initialize(None, None)
        self._encryptor = HEModelEncryptor()
        self._encryptor.tenseal_context = ts.context_from(builder.get_serialized_context(is_client=True))
        self._encryptor.encrypt_layers = [True]  # all, as its START_RUN has it

    def _filter(self, dxo: DXO, site: str) -> DXO:
        peer = FLContext()
        peer.set_prop(ReservedKey.IDENTITY_NAME, site)
        self._context.set_peer_context(peer)
        return self._encryptor.process_dxo(dxo, Shareable(), self._context)

    def _read(self, value: ts.CKKSVector) -> np.ndarray:
        return np.asarray(value.decrypt(self._encryptor.tenseal_context.secret_key()))


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


def message_of(dxo: DXO, site: str) -> bytes:
    """Return a result as it travels."""
    result = dxo.to_shareable()
    result.set_peer_props({ReservedKey.IDENTITY_NAME: site})
    result.add_cookie(AppConstants.CONTRIBUTION_ROUND, 0)
    return fobs.dumps(result)
