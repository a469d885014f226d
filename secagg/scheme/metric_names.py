"""Names of metrics: numbers, such as a loss, that sites measure and average under encryption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from ..errors import ConfigError, show

#: What names of metrics' tensors begin with, as in ``max_abs: {default: 0.1, "secagg.metrics*": 100}``.
METRICS = "secagg.metrics"

#: Longest name of one: those of tensors have 512 characters.
MAX_METRIC_LENGTH = 256


def check_metrics(names: object) -> tuple[str, ...]:
    """Return names of metrics; `ConfigError` if they are none, or one comes twice."""
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"metrics is {show(names)}; give names: ['loss', 'accuracy']")
    unfit = next((name for name in names if not name.isprintable() or not 0 < len(name) <= MAX_METRIC_LENGTH), None)
    if unfit is not None:
        raise ConfigError(f"metrics names {show(unfit)}; use printable text of 1 to {MAX_METRIC_LENGTH} characters")
    if len(set(names)) != len(names):
        raise ConfigError(f"metrics {show(list(names))} names one twice")
    return tuple(names)


def is_metric(name: str) -> bool:
    """Return whether a tensor is one of metrics."""
    return name == METRICS or name.startswith(f"{METRICS}.")


def withhold(vectors: Mapping[str, NDArray[Any]], bounds: Mapping[str, float]) -> dict[str, NDArray[Any]]:
    """Return vectors of metrics in which none that is beyond its bound, and will be clipped, counts as given.

    There is no mean of it then, in place of a wrong one. Its value stays, so that the scales of later rounds fit.

    Parameters
    ----------
    vectors : mapping of str to ndarray
        By the names of tensors: `METRICS`, which tells the metrics that were given, and one of one value for each.
    bounds : mapping of str to float
        The largest magnitude of each that is not clipped.
    """
    given, values = vectors.get(METRICS), [name for name in vectors if name != METRICS]
    if given is None or given.size != len(values) or any(vectors[name].size != 1 for name in values):
        return {}  # somebody's own tensors of that name
    given = given.copy()
    for place, name in enumerate(values):
        if not abs(vectors[name][0]) <= bounds[name]:
            given[place] = 0
    return {METRICS: given}
