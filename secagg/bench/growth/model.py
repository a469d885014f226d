"""Models of any size, whose values do not matter."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

State = dict[str, NDArray[np.float32]]

#: Values from −1 to 1.
BOUND = 1.0

_LAYERS = 10

#: So many values are drawn; larger layers repeat them, since to draw 10⁹ takes longer than to encrypt them.
_DRAWN = 1_000_000


def make_model(parameters: int) -> State:
    """Return a model of ten float32 layers with so many parameters, all in memory."""
    drawn = _draw()
    return {name: np.resize(drawn, size) for name, size in _sizes(parameters)}


def empty_model(parameters: int) -> State:
    """Return a model of the same shapes, of memory that nobody has touched and that is therefore not there."""
    return {name: np.empty(size, np.float32) for name, size in _sizes(parameters)}


def largest_difference(model: State, other: State) -> float:
    """Return by how much two models differ at most, without a copy of either."""
    return max(
        float(np.abs(other[name][start : start + _DRAWN] - layer[start : start + _DRAWN]).max())
        for name, layer in model.items()
        for start in range(0, layer.size, _DRAWN)
    )


def _draw() -> NDArray[np.float32]:
    return np.random.default_rng(0).uniform(-BOUND, BOUND, _DRAWN).astype(np.float32)


def _sizes(parameters: int) -> Iterator[tuple[str, int]]:
    for layer in range(_LAYERS):
        first, last = parameters * layer // _LAYERS, parameters * (layer + 1) // _LAYERS
        yield f"layer-{layer}.weight", last - first
