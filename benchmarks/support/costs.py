"""What a benchmark's ``extra_info`` says beside the time: bytes of the message, its precision, memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import secagg
from secagg.bench.memory import peak, resident
from secagg.trust.key import KeyPair


class FirstPeak:
    """Calls a function, and finds out by how much the first call raises the peak of this process's memory.

    The first alone: the kernel is asked within what is timed.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.nbytes: int | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.nbytes is not None:
            return self._function(*args, **kwargs)
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark is what is resident now
        start = resident()
        result = self._function(*args, **kwargs)
        self.nbytes = max(0, peak() - start)
        return result


def size(sent: secagg.Update | bytes | int) -> int:
    """Return the bytes of a message."""
    if isinstance(sent, secagg.Update):
        return sent.nbytes
    return sent if isinstance(sent, int) else len(sent)


def precision_bits(mean: Any, truth: Any) -> float:
    """Return log2 of the largest true value over the largest error, of arrays or of the tensors of state dicts."""
    if isinstance(truth, Mapping):
        got, expected = (np.concatenate([_vector(state[name]) for name in truth]) for state in (mean, truth))
    else:
        got, expected = _vector(mean), _vector(truth)
    error = float(np.abs(got - expected).max())
    return round(math.log2(float(np.abs(expected).max()) / error), 1) if error else 53.0  # all bits of a double


def decrypt(config: secagg.Config, keys: KeyPair, sent: secagg.Update | bytes, state: Mapping[str, Any]) -> Any:
    """Return the mean of a message and of what as many other sites as it needs make of the same values."""
    update = sent if isinstance(sent, secagg.Update) else secagg.Update.from_bytes(sent)
    aggregator = secagg.Aggregator(config, keys.server, update.round)
    aggregator.add(update)
    for number in range(1, max(2, config.aggregation.min_clients)):
        other = secagg.Client(config, keys.client, f"another-site-{number}")
        aggregator.add(other.encrypt(state, round=update.round))
    return other.decrypt(aggregator.finish(), like=state)


def _vector(values: Any) -> np.ndarray:
    return np.asarray(values, np.float64).reshape(-1)
