"""A signed federation whose rounds begin with a calibration, and what its sites send in each round."""

from __future__ import annotations

from typing import Any

import numpy as np
from federation import Federation
from signed import Signed, sign_federation

import secagg

CONFIG = {
    "he": {"lib": "flashe", "config": {"scheme": "FLASHE"}},
    "aggregation": {"min_clients": 2, "max_clients": 4},
}
FIRST = {"w": np.zeros((300, 7), np.float32), "b": np.zeros(7, np.float32)}


def calibrating(epoch: int = 0, **fields: Any) -> Signed:
    """A federation of three sites; `fields` are of the project."""
    config = secagg.Config.from_dict(CONFIG)
    return sign_federation(Federation(config, secagg.generate_keys(config, epoch)), **fields)


def number_of(site: str) -> int:
    return int(site.removeprefix("site-"))


def state_of(site: str, round: int) -> dict[str, Any]:
    """What a site has learned in a round."""
    rng = np.random.default_rng([number_of(site), round])
    return {name: rng.normal(0, 1e-3, value.shape).astype(np.float32) for name, value in FIRST.items()}


def weight_of(site: str) -> float:
    return 500.0 / number_of(site)


def calibration_of(site: secagg.Client, round: int = 0, base: bytes | None = None) -> secagg.Update:
    return site.calibrate(state_of(site.name, round), weight_of(site.name), round, base=base)


def update_of(site: secagg.Client, scales: secagg.Update) -> secagg.Update:
    round, base = scales.header.round, scales.header.base
    return site.encrypt(state_of(site.name, round), weight_of(site.name), round, base=base, calibration=scales)


def assert_mean(site: secagg.Client, aggregate: secagg.Update) -> None:
    """Hold an aggregate against the mean of its sites, as precise as the least bits make it."""
    names, round = aggregate.header.sites, aggregate.header.round
    mean, total = site.decrypt(aggregate, round=round), sum(map(weight_of, names))
    for name in FIRST:
        exact = sum(weight_of(site) * state_of(site, round)[name].astype(np.float64) for site in names) / total
        assert np.linalg.norm(mean[name] - exact) < 0.1 * np.linalg.norm(exact)
