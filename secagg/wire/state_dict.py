"""State dicts as vectors with every value checked, and vectors as state dicts."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import LayoutError, RangeError
from ..scheme.flat_vector import FlatVector
from ..scheme.patterns import matches
from ..scheme.sharing import shared
from ..scheme.tensors import FLOAT_DTYPES, describe, from_vector, place, to_vector
from .container import digest
from .layout import Layout, TensorSpec

_OTHER = "what is to be decrypted is of another model than `like`"


def checked_vectors(
    specs: Sequence[TensorSpec], state: Mapping[str, Any], bounds: Mapping[str, float], *, clips: bool
) -> list[NDArray[Any]]:
    """Return tensors of a state dict as vectors.

    Parameters
    ----------
    specs : sequence of TensorSpec
        Which tensors.
    state : mapping of str to torch.Tensor or numpy.ndarray
        The state dict.
    bounds : mapping of str to float
        ``max_abs`` of each tensor, by its first name.
    clips : bool
        Whether values beyond their bound will be clipped.

    Raises
    ------
    RangeError
        If a value is NaN or infinite or, unless `clips`, beyond its bound.
    """
    vectors = [to_vector(state[spec.name]) for spec in specs]
    limits = [sys.float_info.max if clips else bounds[spec.name] for spec in specs]  # NaN is no value to clip
    fault = _first_beyond(specs, vectors, limits)
    if fault:
        spec, value, where = fault
        advice = "raise max_abs, or find out why the value is so large"
        if not math.isfinite(value):
            advice = "find out why training diverged"
        raise RangeError(
            f"tensor {spec.name!r} has {value:g} at [{where}], beyond aggregation.max_abs {bounds[spec.name]:g}: "
            f"{advice}; nothing was encrypted"
        )
    return vectors


def check_finite(layout: Layout, state: Mapping[str, Any]) -> None:
    """Raise `RangeError` if a tensor that is sent has a value that never can be: NaN, or infinity."""
    vectors = [to_vector(state[spec.name]) for spec in layout.sent]
    fault = _first_beyond(layout.sent, vectors, [sys.float_info.max] * len(vectors))
    if fault:
        spec, value, where = fault
        raise RangeError(
            f"tensor {spec.name!r} has {value:g} at [{where}], which cannot be sent: a constant such as an attention "
            f"mask or an observer stays at the site by stay: [{spec.name!r}] in the configuration; else find out where "
            "it comes from"
        )


def refuse_clear_copies(layout: Layout, state: Mapping[str, Any]) -> None:
    """Raise `LayoutError` if what is encrypted under one name has the very values of what is clear under another.

    Constant tensors, zeros say, are alike without being copies. Memory that tensors share is told by `Layout.of`.
    """
    encrypted, clear = layout.role("encrypted"), layout.role("clear")
    sizes = {(spec.dtype, spec.size) for spec in encrypted} & {(spec.dtype, spec.size) for spec in clear}
    secrets: dict[bytes, str] = {}
    for spec in (*encrypted, *clear):
        if (spec.dtype, spec.size) not in sizes:
            continue
        vector = to_vector(state[spec.name])
        if spec.size < 2 or bool((vector == vector[0]).all()):
            continue
        found = digest(spec.dtype.encode(), memoryview(vector.view(np.uint8)))  # type: ignore[arg-type]
        if spec.role == "encrypted":
            secrets[found] = spec.name
        elif found in secrets:
            raise LayoutError(
                f"tensor {spec.name!r} is clear and has the very values of {secrets[found]!r}, which is encrypted: "
                "encrypt both or none"
            )


def check_like(layout: Layout, like: Mapping[str, Any], stay: tuple[str, ...]) -> None:
    """Hold the tensors that a caller wants a mean in against the layout that it has.

    Order does not matter, nor whether tensors that are one in the layout are one here; what stays at a site may be
    anything, or missing. What bfloat16 was may be float32, as it is where no `like` was given.

    Raises
    ------
    LayoutError
        If it is of another model.
    """
    if not isinstance(like, Mapping):
        raise LayoutError(f"`like` is a mapping of names to tensors; got {type(like).__name__}")
    for spec in layout.sent:
        for name in spec.names:
            if name not in like:
                raise LayoutError(f"{_OTHER}: tensor {name!r} ({spec}) is not in `like`")
            dtype, shape = describe(name, like[name])
            if shape != spec.shape or (dtype != spec.dtype and (spec.dtype, dtype) != ("bfloat16", "float32")):
                raise LayoutError(f"{_OTHER}: tensor {name!r} is {spec}, and {dtype}{list(shape)} in `like`")
    known = {name for spec in layout.tensors for name in spec.names}
    more = tuple((name,) for name in like if name not in known)
    stays = {name: bool(found) for (name,), found in zip(more, matches(stay, more), strict=True)}
    others = {name: like[name] for name in stays if _is_float(name, like[name])}
    for group in shared(others):  # what is one tensor with what stays does so, too
        if not any(stays[name] for name in group):
            raise LayoutError(f"{_OTHER}: tensor {group[0]!r} of `like` is not in it")


def arrange(layout: Layout, vectors: Mapping[str, NDArray[Any]], like: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the vectors of all tensors that were sent, under all their names, as `like` has them, with the rest of it.

    Without `like`, what is one tensor is one array, and what stays at the site is not there.
    """
    if like is None:
        result: dict[str, Any] = {}
        for spec in layout.sent:
            result |= dict.fromkeys(spec.names, from_vector(vectors[spec.name], spec.dtype, spec.shape))
        return result
    result = copy.copy(like) if isinstance(like, dict) else dict(like)
    for spec in layout.sent:
        first = place(like[spec.name])
        for name in spec.names:
            again = name != spec.name and first is not None and place(like[name]) == first
            tensor = result[spec.name] if again else from_vector(vectors[spec.name], spec.dtype, spec.shape, like[name])
            result[name] = tensor
    return result


def _is_float(name: str, value: Any) -> bool:
    """Return whether a value is a float tensor; what stays at a site may be anything."""
    try:
        return describe(name, value)[0] in FLOAT_DTYPES
    except LayoutError:
        return False


def _first_beyond(
    specs: Sequence[TensorSpec], vectors: list[NDArray[Any]], limits: list[float]
) -> tuple[TensorSpec, float, str] | None:
    """Return tensor, value and place of the first value beyond its limit, or not a number."""
    fault = FlatVector(vectors, limits).first_out_of_range()
    if fault is None:
        return None
    spec, index = specs[fault[0]], fault[1]
    value = float(from_vector(vectors[fault[0]][index : index + 1], spec.dtype, (1,))[0])
    return spec, value, ", ".join(map(str, np.unravel_index(index, spec.shape)))
