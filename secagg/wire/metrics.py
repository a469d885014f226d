"""Metrics that travel encrypted with an update: tensors beside those of the model, zero in every global model.

Each metric is a 0-d tensor, ``secagg.metrics.`` and its name, encrypted whatever else is. The tensor ``secagg.metrics``
tells which of them a site has given: there is a mean of those that all sites of a sum have given, or it could be the
number of a single one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import Config
from ..errors import LayoutError, RangeError, show
from ..scheme.metric_names import METRICS, is_metric
from .layout import Layout

#: By how much the share of the weights whose sites have given a metric may differ from 1: it is rounded as values are.
_ROUNDING = 0.01


def metric_unit(layout: Layout, config: Config) -> float:
    """Return the number that says of a metric that it was given: where bounds are fixed one that is sent precisely."""
    bound = layout.bounds(config.aggregation).get(METRICS, math.inf)
    return bound / 2 if math.isfinite(bound) else 1.0  # half of it, to be within it when rounded


def metric_tensors(
    names: Sequence[str], values: Mapping[str, float] | None = None, unit: float = 1.0
) -> dict[str, NDArray[Any]]:
    """Return the tensors of metrics, zeros where there is no value; what is NaN or infinite counts as not given.

    Raises
    ------
    RangeError
        If a value is of no metric, or no number.
    """
    values = values or {}
    unknown = values.keys() - set(names)
    if unknown:
        raise RangeError(f"metric {min(unknown)!r} was not announced; metrics are {', '.join(names) or 'none'}")
    if not names:
        return {}
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
            raise RangeError(f"metric {name!r} is {show(value)}; give a number")
    given = {name: float(value) for name, value in values.items() if math.isfinite(value)}
    flags = np.array([unit if name in given else 0.0 for name in names])
    return {METRICS: flags} | {f"{METRICS}.{name}": np.array(given.get(name, 0.0)) for name in names}


def metric_means(names: Sequence[str], mean: Mapping[str, NDArray[Any]], unit: float = 1.0) -> dict[str, float]:
    """Return the weighted means of the metrics that all sites have given, from the mean of their tensors."""
    if not names:
        return {}
    shares = dict(zip(names, (mean[METRICS] / unit).tolist(), strict=True))
    return {
        name: float(mean[f"{METRICS}.{name}"]) / shares[name] for name in names if abs(shares[name] - 1) < _ROUNDING
    }


def with_metrics(layout: Layout, names: Sequence[str]) -> Layout:
    """Return how a model is sent with metrics beside it."""
    metrics = Layout.of(metric_tensors(names)) if names else Layout(())
    return Layout((*layout.tensors, *metrics.tensors))


def without_metrics(layout: Layout) -> Layout:
    """Return the layout of the model alone."""
    return Layout(tuple(spec for spec in layout.tensors if not is_metric(spec.name)))


def model_layout(state: Mapping[str, Any], config: Config, metrics: Sequence[str] = ()) -> Layout:
    """Return how differences of a global model are sent, with metrics beside them.

    Raises
    ------
    LayoutError, ConfigError
        As of `Layout.of`; also if a tensor of the model has the name of a metric's.
    """
    taken = next((name for name in state if isinstance(name, str) and is_metric(name)), None)
    if taken is not None:
        raise LayoutError(f"tensor {taken!r}: names that begin with {METRICS} are those of metrics")
    return Layout.of({**state, **metric_tensors(metrics)} if metrics else state, config).widened()
