"""From sample updates to ``max_abs``, and to how precise a mean must be."""

from __future__ import annotations

import glob
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context
from pathlib import Path

import numpy as np

from ..errors import LayoutError, RangeError
from ..scheme.aggregation import Aggregation
from ..scheme.tensors import FLOAT_DTYPES, describe, from_vector, to_vector
from ..wire.layout import Layout
from .model_file import read_state

#: ``max_abs`` is so many times the largest value of the samples.
HEADROOM = 2.0

#: Tensors whose largest values differ by more than this factor get numbers of their own.
SPREAD = 16.0

#: Bits by which the error of a mean must stay below the typical value of an update: the bound on it is an eighth.
SPARE_BITS = 3.0

#: Without a sample, the typical value of an update is taken to be so many bits below ``max_abs``.
TYPICAL_BITS = 11.0


@dataclass(frozen=True)
class Sample:
    """What sample updates say of each float tensor: its largest magnitude, and the root mean square of its values."""

    largest: Mapping[str, float]
    rms: Mapping[str, float]

    @property
    def peak(self) -> tuple[str, float]:
        """The tensor with the largest value of all, and that value."""
        return max(self.largest.items(), key=lambda item: item[1])


def read_sample(paths: Sequence[Path], layout: Layout) -> Sample:
    """Read sample updates of a model.

    Parameters
    ----------
    paths : sequence of Path
        What `read_state` takes each, with the float tensors of the model.
    layout : Layout
        The model.

    Raises
    ------
    FormatError
        If a file cannot be read.
    LayoutError
        If it has other float tensors than the model.
    RangeError
        If a value is NaN or infinite, or all values are zero.
    """
    specs = layout.role("encrypted")
    shapes = {spec.name: spec.shape for spec in specs}
    largest, rms = dict.fromkeys(shapes, 0.0), dict.fromkeys(shapes, 0.0)
    for path in paths:
        state = read_state(path)
        found = {name: describe(name, value) for name, value in state.items()}
        for name in shapes.keys() ^ found.keys():
            if name in shapes or found[name][0] in FLOAT_DTYPES:
                raise LayoutError(
                    f"the float tensor {name!r} is {'not in' if name in shapes else 'only in'} {path}: "
                    "a sample update has the float tensors of the model"
                )
        for spec in specs:
            dtype, shape = found[spec.name]
            if shape != spec.shape:
                raise LayoutError(f"{path}: tensor {spec.name!r} has shape {list(shape)}, the model {list(spec.shape)}")
            values = np.asarray(from_vector(to_vector(state[spec.name]), dtype, (spec.size,)), dtype=np.float64)
            if not np.isfinite(values).all():
                raise RangeError(f"{path}: tensor {spec.name!r} has a value that is NaN or infinite; no update has")
            peak = float(np.abs(values).max(initial=0.0))
            largest[spec.name] = max(largest[spec.name], peak)
            if peak:  # by which values are divided first, so that squares cannot overflow
                share = peak * math.sqrt(float(np.square(values / peak).mean()) / len(paths))
                rms[spec.name] = math.hypot(rms[spec.name], share)
    if not any(largest.values()):
        raise RangeError(f"all values of {', '.join(map(str, paths))} are zero; sample an update after some training")
    return Sample(largest, rms)


def suggest_max_abs(largest: Mapping[str, float]) -> float | dict[str, float]:
    """Return ``max_abs`` for tensors with these largest values: one number, or patterns to numbers.

    The number is twice the largest value, rounded up to two digits. Modules whose tensors are more than `SPREAD` times
    smaller get a pattern and a number of their own; a module whose tensors differ by more than that among themselves
    is split, down to single tensors. Patterns stand for disjoint parts of the tree of names, so no tensor matches two.
    """
    top = max(largest.values())
    patterns = _patterns("", largest, top)
    return {"default": _bound(top)} | patterns if patterns else _bound(top)


def needed_bits(sample: Sample | None, layout: Layout, aggregation: Aggregation) -> float:
    """Return the bits of precision, relative to ``max_abs``, that a mean needs.

    So many that the root mean square of the bounds on the errors is at most 2**-SPARE_BITS of that of the sample.
    """
    if sample is None:
        return TYPICAL_BITS + SPARE_BITS
    specs = layout.role("encrypted")
    limits = layout.bounds(aggregation)
    bounds = math.hypot(*(math.sqrt(spec.size) * limits[spec.name] for spec in specs))
    values = math.hypot(*(math.sqrt(spec.size) * sample.rms[spec.name] for spec in specs))
    return math.log2(bounds / values) + SPARE_BITS


def _patterns(prefix: str, largest: Mapping[str, float], top: float) -> dict[str, float]:
    """Return the patterns of the tensors below `prefix`, ``""`` or ``"module."``, that ``top`` is too large for."""
    known = [value for value in largest.values() if value]  # zeros say nothing
    if not known or min(known) * SPREAD >= top:
        return {}
    if prefix and max(known) <= min(known) * SPREAD:
        return {f"{glob.escape(prefix)}*": _bound(max(known))}
    parts: dict[str, dict[str, float]] = {}
    for name, value in largest.items():
        head, dot, _ = name.removeprefix(prefix).partition(".")
        parts.setdefault(prefix + head + dot, {})[name] = value
    patterns: dict[str, float] = {}
    for part, inside in parts.items():
        if part in inside:  # a tensor, not a module
            # A tensor of that name must not be taken for the numbers of all others.
            pattern = "[d]efault" if part == "default" else glob.escape(part)
            patterns |= {pattern: _bound(inside[part])} if 0 < inside[part] * SPREAD < top else {}
        else:
            patterns |= _patterns(part, inside, top)
    return patterns


def _bound(value: float) -> float:
    """Return a value with headroom, rounded up to two digits."""
    return float(Context(prec=2, rounding=ROUND_CEILING).create_decimal(repr(HEADROOM * value)))
