"""Federated training that is recorded, and what another way of averaging makes of the very same updates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np
import torch
from precision_tasks import State, Task

from secagg.config import NONNEGATIVE

#: ``average(changes, round)``: the weighted mean of what the sites send.
Average = Callable[[Sequence[State], int], State]


@dataclass
class Run:
    """What came of the global model, round by round.

    Attributes
    ----------
    metrics : list of float
        Of the global model after each round.
    errors : list of float
        NMSE of each round's mean beside the exact one; none if that is what was taken.
    finite : bool
        Whether no value of any global model was NaN or infinite.
    least_variance : float
        The smallest of all values that cannot be negative in a network that works.
    """

    metrics: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    finite: bool = True
    least_variance: float = np.inf

    def note(self, task: Task, network: torch.nn.Module, model: State) -> None:
        load(network, model)
        self.metrics.append(task.metric(network))
        self.finite &= all(bool(np.isfinite(tensor).all()) for tensor in model.values())
        variances = [tensor.min() for name, tensor in model.items() if is_variance(name)]
        self.least_variance = float(min([self.least_variance, *variances]))

    @property
    def nmse(self) -> float:
        """The mean of all rounds."""
        return float(np.mean(self.errors))


@dataclass
class Trajectory(Run):
    """A run whose updates are kept: `changes[round][site]`, differences from the global model of the round."""

    task: Task = field(kw_only=True)
    network: torch.nn.Module = field(kw_only=True)
    first: State = field(kw_only=True)
    changes: list[list[State]] = field(default_factory=list)

    def replay(self, average: Average, metric: bool = True) -> Run:
        """Return what becomes of the first global model if the recorded updates are averaged in another way.

        Every site sends what it sent, whatever the means were: all that differs from the recorded run is what
        averaging has lost.
        """
        run, model = Run(), self.first
        for round, changes in enumerate(self.changes):
            mean, exact = average(changes, round), weighted_mean(changes, self.task.weights)
            run.errors.append(nmse(mean, exact))
            model = add(model, mean)
            if metric:
                run.note(self.task, self.network, model)
        return run


def record(task: Task, rounds: int, seed: int = 0, average: Average | None = None) -> Trajectory:
    """Train, and keep all updates; `average` is exact if not given."""
    torch.set_num_threads(1)
    network = task.network(seed)
    model = state_of(network)
    trajectory = Trajectory(task=task, network=network, first=model)
    for round in range(rounds):
        changes = []
        for site in range(len(task.weights)):
            load(network, model)
            task.train(network, site, (seed, round, site))
            changes.append({name: tensor - model[name] for name, tensor in state_of(network).items()})
        mean = weighted_mean(changes, task.weights) if average is None else average(changes, round)
        model = add(model, mean)
        trajectory.changes.append(changes)
        trajectory.note(task, network, model)
    return trajectory


def weighted_mean(changes: Sequence[State], weights: Sequence[float]) -> State:
    """Return the mean in float64, without encryption."""
    return {
        name: np.average([change[name].astype(np.float64) for change in changes], 0, weights) for name in changes[0]
    }


def nmse(mean: State, exact: State) -> float:
    """Return ‖mean − exact‖² / ‖exact‖² over all tensors."""
    error = sum(float(np.square(mean[name] - exact[name], dtype=np.float64).sum()) for name in exact)
    return error / sum(float(np.square(tensor, dtype=np.float64).sum()) for tensor in exact.values())


def add(model: State, mean: State) -> State:
    """Return the next global model; nothing is floored, so that a negative variance does its harm."""
    return {name: (tensor + mean[name]).astype(np.float32) for name, tensor in model.items()}


def state_of(network: torch.nn.Module) -> State:
    """Return copies of a network's float tensors."""
    tensors = network.state_dict().items()
    return {name: tensor.numpy().copy() for name, tensor in tensors if tensor.is_floating_point()}


def load(network: torch.nn.Module, model: State) -> None:
    network.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in model.items()}, strict=False)


def is_variance(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in NONNEGATIVE)
