"""Which tensors of a state dict are one tensor in memory, under several names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import LayoutError
from .tensors import Place, place

#: How long NumPy may search for a common element of two tensors that are woven into each other.
_MAX_WORK = 1_000_000

#: How many pairs of tensors may be woven into each other, as columns of one matrix are.
_MAX_PAIRS = 4_000_000


class _Memory:
    """What is at an address, for NumPy to compare addresses with; nothing is read there."""

    def __init__(self, place: Place) -> None:
        self.__array_interface__ = {
            "version": 3,
            "data": (place.address, True),
            "typestr": f"|V{place.itemsize}",
            "shape": place.shape,
            "strides": place.strides,
        }


def shared(tensors: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the names of each tensor, in order of the first of them.

    Parameters
    ----------
    tensors : mapping of str to object
        Tensors of torch or NumPy; what is none shares nothing.

    Raises
    ------
    LayoutError
        If two tensors have some elements in common but are not the same one.
    """
    names: dict[object, list[str]] = {}
    for name, tensor in tensors.items():
        where = place(tensor)
        names.setdefault(name if where is None else where, []).append(name)
    _refuse_overlap([(where, group[0]) for where, group in names.items() if isinstance(where, Place)])
    return [tuple(group) for group in names.values()]


def _refuse_overlap(places: list[tuple[Place, str]]) -> None:
    """Raise `LayoutError` if two places have memory in common, or so many are woven together that nobody can tell."""
    before: list[tuple[Place, str]] = []
    pairs = 0
    for here, name in sorted(places, key=lambda item: (item[0].device, item[0].start)):
        before = [item for item in before if item[0].end > here.start and item[0].device == here.device]
        pairs += len(before)
        if pairs > _MAX_PAIRS:
            raise LayoutError(
                f"so many tensors are views into the memory of {before[0][1]!r} that nobody can tell which have "
                "elements in common: copy them (clone)"
            )
        for other, other_name in before:
            if _may_overlap(here, other) and _overlap(here, other):
                raise LayoutError(
                    f"tensors {other_name!r} and {name!r} have a part of their memory in common, so that what is "
                    "secret in one could be clear in the other: make them one tensor of one shape, or copy one (clone)"
                )
        before.append((here, name))


def _may_overlap(one: Place, other: Place) -> bool:
    """Return whether elements can meet by their addresses modulo a step that both places keep: quick, and mostly no."""
    step = math.gcd(one.step, other.step)
    if not step:
        return True
    ahead = (other.start - one.start) % step
    return ahead < one.itemsize or step - ahead < other.itemsize


def _overlap(one: Place, other: Place) -> bool:
    try:
        # NumPy takes any number here; its stubs know two.
        return np.shares_memory(np.asarray(_Memory(one)), np.asarray(_Memory(other)), _MAX_WORK)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True
