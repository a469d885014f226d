"""NVFlare without encryption: its own aggregator, and messages as its FOBS makes them of results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.aggregators.intime_accumulate_model_aggregator import InTimeAccumulateWeightedAggregator
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.decomposers import numpy_decomposers
from nvflare.fuel.utils import fobs

from .job import Job, State

numpy_decomposers.register()  # as each of its processes does at its start


class Site:
    """See `roles.Site`."""

    def __init__(self, job: Job) -> None:
        self._job, self._context = job, round_context()

    def send(self, phase: int, site: int, answer: bytes | None) -> bytes:
        """See `roles.Site`."""
        return self.message(site_name(site), self._job.states[site], self._job.weights[site])

    def message(self, name: str, change: State, steps: int) -> bytes:
        """Return the result of a site as it travels."""
        dxo = DXO(DataKind.WEIGHT_DIFF, dict(change), {MetaKey.NUM_STEPS_CURRENT_ROUND: steps})
        return message_of(self._filter(dxo, name), name)

    def _filter(self, dxo: DXO, name: str) -> DXO:
        return dxo


class Server:
    """See `roles.Server`."""

    _make: Callable[..., Any] = InTimeAccumulateWeightedAggregator
    _weighs = True

    def __init__(self, job: Job) -> None:
        self._context = round_context()
        weights = {site_name(site): 1.0 for site in range(job.sites)}
        self._aggregator = type(self)._make(aggregation_weights=weights, weigh_by_local_iter=self._weighs)
        self._aggregator.handle_event(EventType.START_RUN, self._context)

    def add(self, phase: int, message: Path) -> None:
        """See `roles.Server`."""
        self.take(message.read_bytes())

    def take(self, message: bytes) -> None:
        """Add the result that a message holds."""
        if not self._aggregator.accept(fobs.loads(message), self._context):
            raise ValueError("NVFlare's aggregator does not accept the message")

    def finish(self, phase: int, answer: Path) -> None:
        """See `roles.Server`."""
        answer.write_bytes(self.result())

    def result(self) -> bytes:
        """Return the mean as it travels."""
        message: bytes = fobs.dumps(self._aggregator.aggregate(self._context))
        return message


class Reader:
    """See `roles.Reader`."""

    def __init__(self, job: Job) -> None: ...

    def read(self, answer: bytes) -> Mapping[str, NDArray[np.floating]]:
        """See `roles.Reader`."""
        mean = from_shareable(fobs.loads(answer)).data
        return {name: self._read(value) for name, value in mean.items()}

    def _read(self, value: Any) -> NDArray[np.floating]:
        return np.asarray(value)


def site_name(site: int) -> str:
    """Return the name of a site, counted from 0."""
    return f"site-{site + 1}"


def round_context() -> Any:
    """Return the context of the first round."""
    context = FLContext()
    context.set_prop(AppConstants.CURRENT_ROUND, 0)
    return context


def message_of(dxo: DXO, name: str) -> bytes:
    """Return a result as it travels."""
    result = dxo.to_shareable()
    result.set_peer_props({ReservedKey.IDENTITY_NAME: name})
    result.add_cookie(AppConstants.CONTRIBUTION_ROUND, 0)
    message: bytes = fobs.dumps(result)
    return message
