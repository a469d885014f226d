"""The arithmetic of ``precision: auto`` in float64, written from docs/precision.md and of nothing of secagg.

No ciphertext, no lane, no float32: what a federation may lose to rounding, and no more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from precision_tasks import State

LEAST, MOST = -103, 88  # half-octaves of bounds: 2^-51.5 … 2^44
SMALL_SHARE = 0.05
SMALL_BITS = 20


class Simulation:
    """Sites that calibrate, round to the nearest and carry what they drop; an `Average`.

    Parameters
    ----------
    weights : sequence of float
        One a site.
    bits : int
        Of a value: integers from −L to L with L = 2^(bits − 1) − 1.
    """

    def __init__(self, weights: Sequence[float], bits: int) -> None:
        self._weights, self._limit = weights, 2 ** (bits - 1) - 1
        self._carried: list[dict[str, np.ndarray]] = [{} for _ in weights]

    def __call__(self, changes: Sequence[State], round: int) -> State:
        small = small_tensors(changes[0])
        return {name: self._mean(name, [change[name] for change in changes], name in small) for name in changes[0]}

    def _mean(self, name: str, values: Sequence[np.ndarray], small: bool) -> np.ndarray:
        due = [
            weight * value.astype(np.float64) + carried.get(name, 0.0)
            for weight, value, carried in zip(self._weights, values, self._carried, strict=True)
        ]
        bins = [half_octave(float(np.abs(each).max())) for each in due if each.any()]
        if not bins:
            return np.zeros(values[0].shape)
        limit = small_limit(self._limit) if small else self._limit
        step = 2 ** (max(bins) / 2) / limit
        sent = [step * np.clip(np.rint(each / step), -limit, limit) for each in due]
        for each, part, carried in zip(due, sent, self._carried, strict=True):
            carried[name] = each - part
        return np.sum(sent, 0) / sum(self._weights)


def half_octave(largest: float) -> int:
    """Return e, so that 2^(e/2) is the next bound that is not below a magnitude."""
    return min(max(math.ceil(2 * math.log2(largest)), LEAST), MOST)


def small_limit(limit: int) -> int:
    """Return the largest magnitude of as many balanced digits as have 20 bits together."""
    base = 2 * limit + 1
    return (base ** math.ceil(SMALL_BITS / math.log2(base)) - 1) // 2


def small_tensors(state: State) -> set[str]:
    """Return the tensors of at most one dimension, the smallest first, that are 5 % of the values together."""
    room = SMALL_SHARE * sum(tensor.size for tensor in state.values())
    chosen = set()
    for name in sorted((name for name in state if state[name].ndim <= 1), key=lambda name: state[name].size):
        room -= state[name].size
        if room < 0:
            break
        chosen.add(name)
    return chosen
