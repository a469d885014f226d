"""Rounds of training without a network: updates as training makes them, what sites agree on, and how far off that is.

`Simulation` is the design of docs/precision.md in float64, written from that page alone: nothing here is taken from
`secagg.scheme`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from federation import Federation, federate

import secagg
from secagg.scheme.scales import Scales

State = dict[str, np.ndarray[Any, Any]]

#: A small network: kernels and matrices, and what norms and biases have; 1.5 % of the values are of the latter.
SHAPES: Mapping[str, tuple[int, ...]] = {
    "conv1.weight": (16, 4, 3, 3, 3),
    "conv1.bias": (16,),
    "norm1.weight": (16,),
    "norm1.bias": (16,),
    "conv2.weight": (32, 16, 3, 3),
    "bn.weight": (32,),
    "bn.bias": (32,),
    "bn.running_mean": (32,),
    "bn.running_var": (32,),
    "fc.weight": (10, 512),
    "fc.bias": (10,),
    "temperature": (),
}


def training(
    sites: int, rounds: int, seed: int = 0, shapes: Mapping[str, tuple[int, ...]] = SHAPES
) -> list[list[State]]:
    """Updates of rounds, of sites: float32, heavy-tailed, smaller from round to round, and alike at all sites in part.

    Tensors differ by orders of magnitude, as those of networks do. By Student's t of 6 degrees of freedom the largest
    of 5,000 values is about 7 times their root mean square, as in digits and ViT of the study.
    """
    rng = np.random.default_rng(seed)
    sizes = {name: 10 ** rng.uniform(-4.5, -1.5) for name in shapes}
    common = {name: rng.standard_t(6, shape) for name, shape in shapes.items()}

    def update(round: int) -> State:
        return {
            name: np.asarray(sizes[name] * 0.93**round * (common[name] + 0.5 * rng.standard_t(6, shape)), np.float32)
            for name, shape in shapes.items()
        }

    return [[update(round) for _ in range(sites)] for round in range(rounds)]


def scaled(state: State, factor: float) -> State:
    """All of an update times a number."""
    return {name: np.asarray(value * np.float32(factor)) for name, value in state.items()}


def true_mean(states: Sequence[State], weights: Sequence[float]) -> State:
    """The weighted mean in float64."""
    total = math.fsum(weights)
    return {
        name: sum(w * state[name].astype(np.float64) for w, state in zip(weights, states, strict=True)) / total
        for name in states[0]
    }


def nmse(found: Mapping[str, Any], truth: Mapping[str, Any], names: Sequence[str] | None = None) -> float:
    """The energy of the error, over the energy of the truth."""
    names = list(truth) if names is None else names
    error = sum(float(np.sum((np.asarray(found[name], np.float64) - truth[name]) ** 2)) for name in names)
    return error / sum(float(np.sum(np.asarray(truth[name]) ** 2)) for name in names)


@dataclass
class Rounds:
    """Sites that go from round to round together.

    Parameters
    ----------
    federation : Federation
        Of ``precision`` auto or previous.
    weights : sequence of float
        Of the sites, which they also count.
    """

    federation: Federation
    weights: Sequence[float]
    sites: list[secagg.Client] = field(init=False)
    round: int = 0
    base: bytes | None = bytes(32)
    scales: secagg.Update | Scales | None = None
    aggregate: secagg.Update | None = None

    def __post_init__(self) -> None:
        self.sites = [self.federation.site(f"site-{number}") for number in range(len(self.weights))]

    @classmethod
    def of(cls, weights: Sequence[float], variant: str = "flashe", **params: Any) -> Rounds:
        """A federation of exactly so many sites, with `precision` and `max_weight` taken from `params`."""
        numbers = {name: params.pop(name) for name in ("precision", "max_weight", "max_abs") if name in params}
        encrypt = params.pop("encrypt", "all")
        return cls(federate(variant, params, encrypt, max_clients=max(len(weights), 2), **numbers), weights)

    @property
    def auto(self) -> bool:
        return self.federation.config.aggregation.precision == "auto"

    def aggregator(self, kind: str = "update") -> secagg.Aggregator:
        return secagg.Aggregator(
            self.federation.config, self.federation.keys.server, self.round, base=self.base, kind=kind
        )

    def calibrate(self, states: Sequence[State], only: Sequence[int] | None = None) -> secagg.Update:
        """The scales of this round, from the calibrations of all sites or some."""
        aggregator = self.aggregator("calibration")
        for index in range(len(self.sites)) if only is None else only:
            aggregator.add(self.sites[index].calibrate(states[index], self.weights[index], self.round, base=self.base))
        self.scales = aggregator.finish()
        return self.scales

    def exchange(self, states: Sequence[State], only: Sequence[int] | None = None) -> State:
        """The mean of what all sites, or some, send in this round, under the scales that there are."""
        aggregator = self.aggregator()
        for index in range(len(self.sites)) if only is None else only:
            aggregator.add(
                self.sites[index].encrypt(
                    states[index], self.weights[index], self.round, base=self.base, calibration=self.scales
                )
            )
        aggregate = aggregator.finish()
        mean = self.sites[0].decrypt(aggregate, like=states[0], round=self.round, base=self.base)
        self.aggregate, self.base = aggregate, aggregate.next_base
        self.scales = None if self.auto else aggregate
        self.round += 1
        return dict(mean)

    def run(self, states: Sequence[State]) -> State:
        """A whole round."""
        if self.auto:
            self.calibrate(states)
        return self.exchange(states)

    def errors(self, rounds: Sequence[Sequence[State]], names: Sequence[str] | None = None) -> list[float]:
        """The NMSE of each round."""
        return [nmse(self.run(states), true_mean(states, self.weights), names) for states in rounds]


@dataclass
class Simulation:
    """The arithmetic of `precision: auto` in float64.

    y = w·x + r; the bound of a tensor is the least power of √2 that no |y| of any site exceeds; the step is bound / L;
    q = rint(y / step), and r becomes y − q·step. Tensors of at most one dimension have L of 20 bits.
    """

    value_bits: int
    weights: Sequence[float]
    feedback: bool = True
    residuals: list[dict[str, Any]] = field(default_factory=list)

    def run(self, states: Sequence[State]) -> dict[str, Any]:
        """The mean of a round."""
        self.residuals = self.residuals or [dict.fromkeys(states[0], 0.0) for _ in states]
        mean = {}
        for name in states[0]:
            due = [
                weight * state[name].astype(np.float64) + residual[name]
                for weight, state, residual in zip(self.weights, states, self.residuals, strict=True)
            ]
            largest = max(float(np.abs(y).max(initial=0)) for y in due)
            bound = 2 ** (math.ceil(2 * math.log2(largest)) / 2) if largest else 1.0
            sent = [np.rint(y / (step := bound / self.levels(states[0][name]))) * step for y in due]
            mean[name] = sum(sent) / math.fsum(self.weights)
            if self.feedback:
                for residual, y, q in zip(self.residuals, due, sent, strict=True):
                    residual[name] = y - q
        return mean

    def levels(self, value: np.ndarray[Any, Any]) -> int:
        """The largest whole number that a value becomes."""
        limit, lanes = 2 ** (self.value_bits - 1) - 1, 1
        while value.ndim <= 1 and (2 * limit + 1) ** lanes < 2**20 - 1:
            lanes += 1
        return ((2 * limit + 1) ** lanes - 1) // 2

    def errors(self, rounds: Sequence[Sequence[State]]) -> list[float]:
        """The NMSE of each round."""
        return [nmse(self.run(states), true_mean(states, self.weights)) for states in rounds]
