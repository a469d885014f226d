"""secagg by its public API, under the setting that the row is named for; a calibration is a phase of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import secagg

from ..settings import SETTINGS
from .job import BOUND, Job

_CLIENT_KEY, _SERVER_KEY = "client.key", "server.key"


class Site:
    """See `roles.Site`."""

    def __init__(self, job: Job) -> None:
        self._job, config = job, config_of(job)
        keys = secagg.generate_keys(config)
        keys.client.save(job.keys / _CLIENT_KEY)
        keys.server.save(job.keys / _SERVER_KEY)
        self._calibrates = config.aggregation.calibrated
        self._clients = [secagg.Client(config, keys.client, f"site-{site + 1}") for site in range(job.sites)]

    def send(self, phase: int, site: int, answer: bytes | None) -> bytes:
        """See `roles.Site`."""
        client, state, weight = self._clients[site], self._job.states[site], self._job.weights[site]
        if self._calibrates and phase == 0:
            return client.calibrate(state, weight).to_bytes()
        scales = secagg.Update.from_bytes(answer) if answer else None
        return client.encrypt(state, weight, calibration=scales).to_bytes()


class Server:
    """See `roles.Server`."""

    def __init__(self, job: Job) -> None:
        self._config, key = config_of(job), secagg.load_key(job.keys / _SERVER_KEY)
        assert isinstance(key, secagg.ServerKey)
        self._key = key
        self._kinds = ["calibration", "update"] if self._config.aggregation.calibrated else ["update"]
        self._begin(0)

    def add(self, phase: int, message: Path) -> None:
        """See `roles.Server`."""
        with secagg.Update.open(message) as update:
            self._aggregator.add(update)

    def finish(self, phase: int, answer: Path) -> None:
        """See `roles.Server`."""
        with answer.open("wb") as file:
            file.writelines(self._aggregator.finish().chunks())
        if phase + 1 < len(self._kinds):
            self._begin(phase + 1)

    def _begin(self, phase: int) -> None:
        self._aggregator = secagg.Aggregator(self._config, self._key, kind=self._kinds[phase])


class Reader:
    """See `roles.Reader`."""

    def __init__(self, job: Job) -> None:
        key = secagg.load_key(job.keys / _CLIENT_KEY)
        assert isinstance(key, secagg.ClientKey)
        self._client = secagg.Client(config_of(job), key, "site-1")

    def read(self, answer: bytes) -> Mapping[str, NDArray[np.floating]]:
        """See `roles.Reader`."""
        return self._client.decrypt(secagg.Update.from_bytes(answer))


def config_of(job: Job) -> secagg.Config:
    """Return the configuration: values to `BOUND` and weights to the largest, where they are bounded."""
    setting = SETTINGS[job.setting]
    limits = {"max_abs": BOUND, "max_weight": float(max(job.weights))} if setting.fixed else {}
    return setting.config(job.sites, **limits)
