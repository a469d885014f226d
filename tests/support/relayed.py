"""A federation whose messages a framework would carry: a relay, and for each message a site that is made anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from provisioned import Federation

import secagg
from secagg.protocol import Handout
from secagg.server import Relay
from secagg.site import Follower

MODEL: dict[str, np.ndarray] = {"w": np.linspace(-0.2, 0.2, 1000, dtype=np.float32), "steps": np.array(3)}
CHANGES = {"a": 0.01, "b": 0.02, "c": 0.06}
WEIGHTS = {"a": 1.0, "b": 2.0, "c": 5.0}

FIXED = {"min_clients": 2, "max_clients": 4, "max_weight": 8, "max_abs": 0.1}
METERED = FIXED | {"max_abs": {"default": 0.1, "secagg.metrics*": 100}}
PREVIOUS = {"min_clients": 2, "max_clients": 4, "max_weight": 8, "precision": "previous"}


def provision(folder: Path, aggregation: Mapping[str, Any] = FIXED, **changes: Any) -> Federation:
    """Return kits of three sites, under FLASHE with 16 bits, rounded to the nearest."""
    he = {"lib": "flashe", "config": {"value_bits": 16, "rounding": "nearest"}}
    return Federation.make(folder, hosts=[], **({"he": he, "aggregation": dict(aggregation)} | changes))


@dataclass
class Relayed:
    """Sites `a`, `b`, `c`, what each keeps, and which round each has a global model of."""

    kits: Federation
    metrics: Sequence[str] = ()
    states: dict[str, bytes] = field(default_factory=dict)
    rounds: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.relay = Relay(self.kits["server"], MODEL, metrics=self.metrics)

    def handout(self, name: str, store: bool = False) -> Handout:
        """Return what a site is handed out, as it arrives."""
        handout = self.relay.handout(self.rounds.get(name), store=store)
        return Handout.from_parts(handout.facts(), handout.blobs())

    def follower(self, name: str, handout: Handout | None = None) -> Follower:
        """Return a site, in a fresh process, that has received what it was handed out."""
        handout = handout or self.handout(name)
        follower = Follower(self.kits[name], self.states.get(name, b""))
        follower.receive(handout, MODEL if handout.first else None)
        return follower

    def keep(self, follower: Follower) -> None:
        self.states[follower.name] = follower.to_bytes()

    def train(self, name: str, store: bool = False, metrics: Mapping[str, float] | None = None) -> tuple[bytes, bytes]:
        """Let a site train, and return what it returns."""
        follower = self.follower(name, self.handout(name, store))
        assert follower.model is not None
        state = follower.model.state
        local = {"w": state["w"] + np.float32(CHANGES[name]), "steps": state["steps"] + 1}
        update = follower.encrypt(local, WEIGHTS[name], metrics)
        model = follower.stored() if store else b""
        self.keep(follower)
        return update, model

    def round(self, names: str = "abc", store: str = "", metrics: Mapping[str, float] | None = None) -> secagg.Update:
        """Run a round of some sites; those in `store` return their global models, too."""
        replies = {name: self.train(name, name in store, metrics) for name in names}
        for name, (update, model) in replies.items():
            assert self.relay.add(update, model).site == name
            self.rounds[name] = self.relay.round
        return self.relay.finish()

    def model(self, name: str) -> dict[str, Any]:
        """Return the global model of a site that has received what there is."""
        follower = self.follower(name)
        assert follower.model is not None
        return follower.model.state


def mean_of(names: str) -> float:
    """Return the weighted mean of what some sites change in a round."""
    return sum(WEIGHTS[name] * CHANGES[name] for name in names) / sum(WEIGHTS[name] for name in names)


def tolerance(rounds: int) -> float:
    """Return how far from the mean a value may be with max_abs 0.1 and 16 bits: a step a round, and float32's."""
    return rounds * (0.1 / (2**15 - 1) * 8 / min(WEIGHTS.values()) + 2.0**-24)
