"""State dicts as vectors with every value checked, and vectors as state dicts."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RangeError
from ..scheme.aggregation import Aggregation
from ..scheme.flat_vector import FlatVector
from ..scheme.tensors import from_vector, to_vector
from .layout import Layout, TensorSpec


def checked_vectors(
    specs: Sequence[TensorSpec], state: Mapping[str, Any], aggregation: Aggregation, *, clips: bool
) -> tuple[list[NDArray[Any]], list[float]]:
    """Return tensors of a state dict as vectors, and the ``max_abs`` of each.

    Raises
    ------
    RangeError
        If a value is NaN or infinite or, unless `clips`, beyond its bound.
    """
    vectors = [to_vector(state[spec.name]) for spec in specs]
    bounds = [aggregation.bound(spec.name) for spec in specs]
    limits = [sys.float_info.max] * len(bounds) if clips else bounds  # NaN and infinity are no values to clip
    fault = FlatVector(vectors, limits).first_out_of_range()
    if fault:
        spec, index = specs[fault[0]], fault[1]
        value = float(from_vector(vectors[fault[0]][index : index + 1], spec.dtype, (1,))[0])
        where = ", ".join(map(str, np.unravel_index(index, spec.shape)))
        advice = "raise max_abs, or find out why the value is so large"
        if not math.isfinite(value):
            advice = "find out why training diverged"
        raise RangeError(
            f"tensor {spec.name!r} has {value:g} at [{where}], beyond aggregation.max_abs {bounds[fault[0]]:g}: "
            f"{advice}; nothing was encrypted"
        )
    return vectors, bounds


def arrange(layout: Layout, vectors: Mapping[str, NDArray[Any]], like: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the vectors of all float tensors as the tensors of a layout, as `like` has them."""
    result: dict[str, Any] = copy.copy(like) if isinstance(like, dict) else {}
    for spec in layout.tensors:
        pattern = None if like is None else like[spec.name]
        if spec.role != "local":
            result[spec.name] = from_vector(vectors[spec.name], spec.dtype, spec.shape, pattern)
        elif like is not None:
            result[spec.name] = pattern
    return result
