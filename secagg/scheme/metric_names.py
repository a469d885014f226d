"""Names of metrics: numbers, such as a loss, that sites measure and average under encryption."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ConfigError, show

#: What names of metrics' tensors begin with, as in ``max_abs: {default: 0.1, "secagg.metrics*": 100}``.
METRICS = "secagg.metrics"


def check_metrics(names: object) -> tuple[str, ...]:
    """Return names of metrics; `ConfigError` if they are none, or one comes twice."""
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"metrics is {show(names)}; give names: ['loss', 'accuracy']")
    if len(set(names)) != len(names):
        raise ConfigError(f"metrics {show(list(names))} names one twice")
    return tuple(names)


def is_metric(name: str) -> bool:
    """Return whether a tensor is one of metrics."""
    return name == METRICS or name.startswith(f"{METRICS}.")
