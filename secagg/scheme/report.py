"""How precisely a site's latest update was sent: what rounding and clipping have kept of each tensor, and dropped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FormatError
from .flat_vector import FlatVector

#: Without error feedback, rounding that loses more of a tensor's energy is worth a warning.
MAX_LOSS = 0.01

#: Values of a tensor by which the loss of rounding is measured, where it may be more than `MAX_LOSS`.
_SAMPLE = 1 << 12

#: Tensors that are shown, and characters of their names.
_MAX_ROWS, _MAX_NAME = 20, 40


@dataclass(frozen=True)
class TensorReport:
    """What became of one encrypted tensor. All but shares are in units of weight · value.

    Parameters
    ----------
    name : str
        Its first name.
    values : int
        How many.
    signal : float
        Root mean square of what was due: the update and what earlier ones have left.
    step : float
        Of the quantisation.
    clipped : int
        Values beyond the bound.
    residual : float
        Norm of what rounding and clipping have left to the next update; 0 without error feedback.
    loss : float
        Energy of what was sent in excess or not at all, by that of what was due. With error feedback it is that of the
        residual, and not lost; else of rounding and clipping, see `rounding_loss` and `clipping_loss`.
    """

    name: str
    values: int
    signal: float
    step: float
    clipped: int
    residual: float
    loss: float

    @property
    def bits(self) -> float:
        """Bits that the typical value takes: log2(1 + 2 · signal / step)."""
        return math.log2(1 + 2 * self.signal / self.step)

    @property
    def share_clipped(self) -> float:
        """Share of the values that were clipped."""
        return self.clipped / self.values if self.values else 0.0

    @property
    def norm(self) -> float:
        """Of what was due."""
        return math.sqrt(self.values) * self.signal

    def row(self, name: str) -> str:
        """Return a line of the table of `PrecisionReport`."""
        clipped, loss = show_share(self.share_clipped), show_share(self.loss)
        return f"{name:<{_MAX_NAME}} {self.values:>13,} {self.bits:>5.1f} {clipped:>8} {loss:>8} {self.residual:>9.3g}"


@dataclass(frozen=True)
class PrecisionReport:
    """What became of one update; as text, a table of it, the tensor first that lost most.

    Parameters
    ----------
    round : int
        Of the update.
    tensors : tuple of TensorReport
        The encrypted ones, in order.
    """

    round: int
    tensors: tuple[TensorReport, ...]

    @property
    def overall(self) -> TensorReport:
        """All tensors as one: the step is the root mean square of theirs."""
        values, norm = sum(item.values for item in self.tensors), math.hypot(*(item.norm for item in self.tensors))
        lost = math.hypot(*(math.sqrt(item.loss) * item.norm for item in self.tensors)) / norm if norm else 0.0

        def mean(numbers: Sequence[float]) -> float:
            each = (math.sqrt(item.values) * number for item, number in zip(self.tensors, numbers, strict=True))
            return math.hypot(*each) / math.sqrt(values) if values else 0.0

        return TensorReport(
            name="overall",
            values=values,
            signal=mean([item.signal for item in self.tensors]),
            step=mean([item.step for item in self.tensors]) or 1.0,
            clipped=sum(item.clipped for item in self.tensors),
            residual=math.hypot(*(item.residual for item in self.tensors)),
            loss=lost * lost,
        )

    @property
    def worst(self) -> list[TensorReport]:
        """The tensors, those first of which most was dropped."""
        return sorted(self.tensors, key=lambda item: item.loss, reverse=True)

    def __str__(self) -> str:
        worst = self.worst
        head = f"{'tensor':<{_MAX_NAME}} {'values':>13} {'bits':>5} {'clipped':>8} {'dropped':>8} {'residual':>9}"
        lines = [head, *(item.row(short_name(item.name, _MAX_NAME)) for item in worst[:_MAX_ROWS])]
        if len(worst) > _MAX_ROWS:
            rest = PrecisionReport(self.round, tuple(worst[_MAX_ROWS:])).overall
            lines.append(rest.row(f"{len(worst) - _MAX_ROWS} more"))
        return "\n".join([*lines, self.overall.row("overall")])

    def to_json(self) -> list[Any]:
        """Return what `from_json` reads."""
        return [self.round, [[getattr(item, field.name) for field in fields(item)] for item in self.tensors]]

    @classmethod
    def from_json(cls, data: Any) -> PrecisionReport:
        """Read a stored report; what is none raises `FormatError`."""
        try:
            round, rows = data
            tensors = tuple(_read_row(*row) for row in rows)
        except (TypeError, ValueError, OverflowError) as error:
            raise FormatError("the stored report is none of an update") from error
        if not isinstance(round, int) or round < 0:
            raise FormatError("the stored report is of no round")
        return cls(round, tensors)


def rounding_loss(vector: NDArray[Any], factor: float, step: float, signal: float, *, stochastic: bool) -> float:
    """Return the share of a tensor's energy that rounding loses where nothing carries it on.

    The error of a value depends on where it lies between two steps: zeros lose nothing, values far below half a step
    everything; between many steps, a mean of step² / 12, or twice that under stochastic rounding, which is its variance
    then. If the loss may be more than `MAX_LOSS` whatever the values are, it is measured on evenly spaced ones.

    Parameters
    ----------
    vector : ndarray
        The values, as `FlatVector` takes them.
    factor : float
        By which they are multiplied before they are rounded.
    step : float
        To multiples of which they are rounded.
    signal : float
        Root mean square of the values times `factor`.
    stochastic : bool
        How they are rounded.
    """
    if not signal:
        return 0.0
    ratio = step / signal
    square = ratio * ratio  # a power that is too large would raise
    if square / 4 <= MAX_LOSS:  # no error is above half a step, nor its variance above a quarter of a step's square
        return square / (6 if stochastic else 12)
    sample = np.ascontiguousarray(vector[:: -(-vector.size // _SAMPLE)])
    numbers = np.empty(sample.size)
    FlatVector([sample]).read(0, numbers, factor)
    numbers /= step
    below = numbers - np.floor(numbers)
    errors = below * (1 - below) if stochastic else np.minimum(below, 1 - below) ** 2
    return float(errors.mean()) * square


def clipping_loss(vector: NDArray[Any], factor: float, bound: float, energy: float) -> float:
    """Return the share of a tensor's energy, the sum of squares of its values times `factor`, that a bound cuts off."""
    numbers = np.empty(vector.size)
    FlatVector([vector]).read(0, numbers, factor)
    scale = float(np.abs(numbers).max(initial=0.0))
    if not 0 < scale < math.inf or not energy:  # it has changed since it was checked
        return 0.0
    beyond = np.maximum(np.abs(numbers) - bound, 0) / scale  # so that squares cannot overflow
    return min(float(beyond @ beyond) * scale / energy * scale, 1.0)


def show_share(share: float) -> str:
    """Return a share in percent, with two digits at most."""
    percent = 100 * share
    if 0 < percent < 0.01:
        return "<0.01 %"
    return f"{percent:.0f} %" if percent >= 9.95 or percent == 0 else f"{percent:.2g} %"


def short_name(name: str, length: int) -> str:
    """Return the end of a name that is too long, which tells more than its beginning."""
    return name if len(name) <= length else f"…{name[1 - length :]}"


def _read_row(name: Any, values: Any, signal: Any, step: Any, clipped: Any, residual: Any, loss: Any) -> TensorReport:
    numbers = (signal, step, residual, loss)
    if not isinstance(name, str) or not name.isprintable():
        raise ValueError("a name that is none")
    if not isinstance(values, int) or not isinstance(clipped, int) or not 0 <= clipped <= values:
        raise ValueError("counts that are none")
    if not all(isinstance(number, (int, float)) and 0 <= number < math.inf for number in numbers) or step == 0:
        raise ValueError("numbers that are none")
    return TensorReport(name, values, float(signal), float(step), clipped, float(residual), float(loss))
