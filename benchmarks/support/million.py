"""Four layers of 500 × 500 with biases, 1,002,000 values in 8 tensors; what sites change of them, and its mean."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

import secagg
from secagg.scheme.codec import codec_for

State = dict[str, np.ndarray]

SHAPES = {f"{layer}.{name}": shape for layer in range(4) for name, shape in (("weight", (500, 500)), ("bias", (500,)))}
INITIAL: State = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
RAW_NBYTES = sum(tensor.nbytes for tensor in INITIAL.values())
MAX_ABS = 0.1


def draw_change(seed: int) -> State:
    draw = np.random.default_rng(seed)
    return {name: draw.uniform(-0.05, 0.05, shape).astype(np.float32) for name, shape in SHAPES.items()}


def limits(steps: Mapping[str, int], max_clients: int = 30) -> dict[str, float]:
    """Return the ``aggregation`` block of sites with these weights."""
    return {
        "min_clients": len(steps),
        "max_clients": max_clients,
        "max_abs": MAX_ABS,
        "max_weight": max(steps.values()),
        "precision": "fixed",
    }


def weighted_mean(changes: Mapping[str, State], steps: Mapping[str, int]) -> State:
    """Return the mean in float64."""
    total = sum(steps.values())
    return {
        name: sum(steps[site] * change[name].astype(float) for site, change in changes.items()) / total
        for name in SHAPES
    }


def max_error(one: State, other: State) -> float:
    return max(float(np.abs(one[name].reshape(-1) - other[name].reshape(-1)).max()) for name in SHAPES)


def error_bound(config: secagg.Config, steps: Mapping[str, int]) -> float:
    """Return how far the mean that sites decrypt may be off, the rounding of models to float32 included."""
    weights = sum(steps.values()) / config.aggregation.max_weight
    return codec_for(config.params, config.aggregation).mean_error(len(steps), weights) + 2.0**-22
