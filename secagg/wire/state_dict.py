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
from ..scheme.tensors import FLOAT_DTYPES, describe, from_vector, is_torch, place, to_array, to_vector
from .container import digest
from .layout import Layout, TensorSpec


def check_values(specs: Sequence[TensorSpec], vectors: Sequence[NDArray[Any]], bounds: Mapping[str, float]) -> None:
    """Hold the values of tensors against their bounds.

    Parameters
    ----------
    specs : sequence of TensorSpec
        Which tensors.
    vectors : sequence of ndarray
        Their values.
    bounds : mapping of str to float
        ``max_abs`` of each tensor, by its first name; the largest float where only NaN and infinity are wrong.

    Raises
    ------
    RangeError
        If a value is NaN or infinite, or beyond its bound.
    """
    fault = _first_beyond(specs, vectors, [bounds[spec.name] for spec in specs])
    if fault:
        spec, value, where = fault
        if not math.isfinite(value):
            raise RangeError(
                f"tensor {spec.name!r} has {value:g} at [{where}]: find out why training diverged; nothing was "
                "encrypted"
            )
        raise RangeError(
            f"tensor {spec.name!r} has {value:g} at [{where}], beyond aggregation.max_abs {bounds[spec.name]:g}: "
            "raise max_abs, leave it out of an exact scheme's configuration to have it measured, or find out why the "
            "value is so large; nothing was encrypted"
        )


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


def refuse_copies(layout: Layout, state: Mapping[str, Any]) -> None:
    """Raise `LayoutError` if what is secret under one name has the very values of what is not under another.

    That is, of what is encrypted if the other is clear, and of what stays at the site if the other is sent. Values are
    compared as float32. Constant tensors, zeros say, are alike without being copies. Memory that tensors share is told
    by `Layout.of`; a part of a tensor, or a multiple, is not found here.
    """
    stays = {name: value for name, value in state.items() if name not in layout.names and _is_float(name, value)}
    at_home = {found: name for name, value in stays.items() if (found := _values_digest(name, value)) is not None}
    mixed = bool(layout.role("encrypted")) and bool(layout.role("clear"))
    sizes = {math.prod(describe(name, value)[1]) for name, value in stays.items()}
    if mixed:
        sizes |= {spec.size for spec in layout.role("encrypted")} & {spec.size for spec in layout.role("clear")}
    secrets: dict[bytes, str] = {}
    for spec in (*layout.role("encrypted"), *layout.role("clear")):
        found = _values_digest(spec.name, state[spec.name]) if spec.size in sizes else None
        if found is None:
            continue
        if found in at_home:
            raise LayoutError(
                f"tensor {spec.name!r} is sent and has the very values of {at_home[found]!r}, which stays at the site: "
                "let both stay, or give the layout of the model, where they may be one"
            )
        if spec.role == "encrypted":
            secrets[found] = spec.name
        elif found in secrets:
            raise LayoutError(
                f"tensor {spec.name!r} is clear and has the very values of {secrets[found]!r}, which is encrypted: "
                "encrypt both or none"
            )


def _values_digest(name: str, value: Any) -> bytes | None:
    """Return the digest of a float tensor's values as float32; None if they are constant."""
    values = to_array(name, value)[1].reshape(-1)
    if values.size < 2 or bool((values == values[0]).all()):
        return None
    with np.errstate(over="ignore"):  # what is beyond float32 is beyond it in both
        vector = np.ascontiguousarray(values, dtype=np.float32)
    return digest(memoryview(vector.view(np.uint8)))  # type: ignore[arg-type]  # an ndarray is a buffer


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
    _check_tensors(
        layout, like, stay, "what is to be decrypted is of another model than `like`", {"bfloat16": "float32"}
    )


def check_state(layout: Layout, state: Mapping[str, Any], stay: tuple[str, ...]) -> None:
    """Hold the tensors that a caller sends in a layout against it: also that what is one tensor has the same values.

    Raises
    ------
    LayoutError
        If they do not fit.
    """
    if not isinstance(state, Mapping):
        raise LayoutError(f"a state dict is needed, a mapping of names to tensors; got {type(state).__name__}")
    _check_tensors(layout, state, stay, "what is to be sent is of another model than `layout`", {})
    for spec in layout.sent:
        first = to_vector(state[spec.name]).view(np.uint8)
        for name in spec.names[1:]:
            if state[name] is not state[spec.name] and not np.array_equal(to_vector(state[name]).view(np.uint8), first):
                raise LayoutError(
                    f"tensors {spec.name!r} and {name!r} are one in `layout`, and have different values: tie them"
                )


def _check_tensors(
    layout: Layout, tensors: Mapping[str, Any], stay: tuple[str, ...], fault: str, widened: Mapping[str, str]
) -> None:
    for spec in layout.sent:
        for name in spec.names:
            if name not in tensors:
                raise LayoutError(f"{fault}: tensor {name!r} ({spec}) is missing")
            dtype, shape = describe(name, tensors[name])
            if shape != spec.shape or dtype not in (spec.dtype, widened.get(spec.dtype)):
                raise LayoutError(f"{fault}: tensor {name!r} is {dtype}{list(shape)}, in the layout {spec}")
    more = tuple((name,) for name in tensors if name not in layout.names)
    stays = {name: bool(found) for (name,), found in zip(more, matches(stay, more), strict=True)}
    others = {name: tensors[name] for name in stays if stays[name] or _is_float(name, tensors[name])}
    for group in shared(others):  # what is one tensor with what stays does so, too
        if not any(stays[name] for name in group):
            raise LayoutError(f"{fault}: tensor {group[0]!r} is one too many")


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
        first = place(like[spec.name]) if len(spec.names) > 1 else None
        for name in spec.names:
            again = name != spec.name and first is not None and place(like[name]) == first
            tensor = result[spec.name] if again else from_vector(vectors[spec.name], spec.dtype, spec.shape, like[name])
            result[name] = tensor.to(like[name].dtype) if is_torch(tensor) else tensor  # of bfloat16 in float32
    return result


def _is_float(name: str, value: Any) -> bool:
    """Return whether a value is a float tensor; what stays at a site may be anything."""
    try:
        return describe(name, value)[0] in FLOAT_DTYPES
    except LayoutError:
        return False


def _first_beyond(
    specs: Sequence[TensorSpec], vectors: Sequence[NDArray[Any]], limits: list[float]
) -> tuple[TensorSpec, float, str] | None:
    """Return tensor, value and place of the first value beyond its limit, or not a number."""
    fault = FlatVector(vectors, limits).first_out_of_range()
    if fault is None:
        return None
    spec, index = specs[fault[0]], fault[1]
    value = float(from_vector(vectors[fault[0]][index : index + 1], spec.dtype, (1,))[0])
    return spec, value, ", ".join(map(str, np.unravel_index(index, spec.shape)))
