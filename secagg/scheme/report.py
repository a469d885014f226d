"""How precisely a site's latest update was sent: what rounding and clipping have kept of each tensor, and dropped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from ..errors import FormatError

#: Without error feedback, rounding that loses more of a tensor's energy is worth a warning.
MAX_LOSS = 0.01


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
    """

    name: str
    values: int
    signal: float
    step: float
    clipped: int
    residual: float

    @property
    def bits(self) -> float:
        """Bits that the typical value takes: log2(1 + 2 · signal / step)."""
        return math.log2(1 + 2 * self.signal / self.step)

    @property
    def share_clipped(self) -> float:
        """Share of the values that were clipped."""
        return self.clipped / self.values if self.values else 0.0

    @property
    def loss(self) -> float:
        """Share of the energy that rounding loses where nothing carries it on, at most 1: step² / (12 · signal²)."""
        return min(1.0, (self.step / self.signal) ** 2 / 12) if self.signal else 0.0


@dataclass(frozen=True)
class PrecisionReport:
    """What became of one update.

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
        values = sum(item.values for item in self.tensors)

        def mean(numbers: Sequence[float]) -> float:
            squares = sum(item.values * number**2 for item, number in zip(self.tensors, numbers, strict=True))
            return math.sqrt(squares / values) if values else 0.0

        return TensorReport(
            name="overall",
            values=values,
            signal=mean([item.signal for item in self.tensors]),
            step=mean([item.step for item in self.tensors]) or 1.0,
            clipped=sum(item.clipped for item in self.tensors),
            residual=math.hypot(*(item.residual for item in self.tensors)),
        )

    def to_json(self) -> list[Any]:
        """Return what `from_json` reads."""
        return [self.round, [[getattr(item, field.name) for field in fields(item)] for item in self.tensors]]

    @classmethod
    def from_json(cls, data: Any) -> PrecisionReport:
        """Read a stored report; what is none raises `FormatError`."""
        try:
            round, rows = data
            tensors = tuple(
                TensorReport(str(name), int(values), float(signal), float(step), int(clipped), float(residual))
                for name, values, signal, step, clipped, residual in rows
            )
            return cls(int(round), tensors)
        except (TypeError, ValueError, OverflowError) as error:
            raise FormatError("the stored report is none of an update") from error
