"""What a configuration makes of sample updates: each tensor rounded as the codec rounds it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..config import Config
from ..errors import LayoutError, RangeError
from ..scheme.digits import small_tensors
from ..scheme.integer_codec import IntegerCodec
from ..scheme.params import QuantisedParams
from ..scheme.report import MAX_LOSS, PrecisionReport, TensorReport
from ..scheme.scales import BINS, Scales, bound_of, one_hot
from ..scheme.tensors import FLOAT_DTYPES, describe, from_vector, to_vector
from ..wire.layout import Layout
from .model_file import read_state

#: The largest value of an update that is sent as it is.
_LARGEST = bound_of(BINS - 1)

Values = Mapping[str, NDArray[np.float64]]


def read_largest(paths: Sequence[Path], layout: Layout) -> dict[str, float]:
    """Read sample updates of a model, and return the largest magnitude in all of them of each tensor.

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
        If a value is NaN, infinite or beyond what is sent, or all values are zero.
    """
    largest = {spec.name: 0.0 for spec in layout.sent}
    for path in paths:
        for name, values in _read(path, layout).items():
            peak = float(np.abs(values).max(initial=0.0))
            if not peak <= _LARGEST:
                what = f"a value of {peak:.3g}, beyond {_LARGEST:.3g}" if math.isfinite(peak) else "NaN or infinity"
                raise RangeError(f"{path}: tensor {name!r} has {what}; is it an update of a training that works?")
            largest[name] = max(largest[name], peak)
    if not any(largest.values()):
        raise RangeError(f"all values of {', '.join(map(str, paths))} are zero; sample an update after some training")
    return largest


def check_sample(paths: Sequence[Path], layout: Layout, config: Config) -> PrecisionReport:
    """Round sample updates as one round of as many sites would, which measures its scales; nothing is encrypted.

    Parameters
    ----------
    paths, layout
        As of `read_largest`, which has read them.
    config : Config
        Of an exact scheme, ``precision: auto``.

    Returns
    -------
    PrecisionReport
        Of all samples as one; the loss of a tensor is what a round leaves to the next by error feedback.
    """
    assert isinstance(config.params, QuantisedParams)
    codec = IntegerCodec(config.params, config.aggregation)
    specs = layout.role("encrypted")
    bounds = Scales.measured(one_hot(list(read_largest(paths, layout).values()))).bounds
    small = small_tensors([spec.shape for spec in specs])
    steps = {spec.name: bound / codec.limit_of(few) for spec, bound, few in zip(specs, bounds, small, strict=True)}
    energies, rests = dict.fromkeys(steps, 0.0), dict.fromkeys(steps, 0.0)
    for path in paths:
        for name, values in _read(path, layout).items():
            dropped = values - np.rint(values / steps[name]) * steps[name]
            energies[name] += float(np.square(values).sum()) / len(paths)
            rests[name] += float(np.square(dropped).sum()) / len(paths)
    tensors = (
        TensorReport(
            name=spec.name,
            values=spec.size,
            signal=math.sqrt(energies[spec.name] / max(spec.size, 1)),
            step=steps[spec.name],
            clipped=0,
            residual=math.sqrt(rests[spec.name]),
            loss=rests[spec.name] / energies[spec.name] if energies[spec.name] else 0.0,
        )
        for spec in specs
    )
    return PrecisionReport(0, tuple(tensors))


def bits_for(report: PrecisionReport, value_bits: int) -> int:
    """Return the ``value_bits`` by which no tensor would lose more than `MAX_LOSS`: each more is a quarter of it."""
    loss = max((item.loss for item in report.tensors), default=0.0)
    return value_bits + (max(0, math.ceil(math.log(loss / MAX_LOSS, 4))) if loss else 0)


def _read(path: Path, layout: Layout) -> dict[str, NDArray[np.float64]]:
    """Return the values of the model's float tensors in a sample update."""
    specs = layout.sent
    shapes = {spec.name: spec.shape for spec in specs}
    state = read_state(path)
    found = {name: describe(name, value) for name, value in state.items()}
    for name in shapes.keys() ^ found.keys():
        if name in shapes or found[name][0] in FLOAT_DTYPES:
            raise LayoutError(
                f"the float tensor {name!r} is {'not in' if name in shapes else 'only in'} {path}: "
                "a sample update has the float tensors of the model"
            )
    values = {}
    for spec in specs:
        dtype, shape = found[spec.name]
        if shape != spec.shape:
            raise LayoutError(f"{path}: tensor {spec.name!r} has shape {list(shape)}, the model {list(spec.shape)}")
        vector = from_vector(to_vector(state[spec.name]), dtype, (spec.size,))
        values[spec.name] = np.asarray(vector, dtype=np.float64)
    return values
