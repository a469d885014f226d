"""How updates are added, and for how many and how large ones the capacity is planned."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, PrivacyWarning, show, warn_once
from .patterns import matches, read_pattern, unmatched

#: The most contributions that one aggregate can list.
MAX_CLIENTS = 10_000

PRECISION_CHOICES = ("fixed", "auto", "previous")

#: Weights that are taken where no ``max_weight`` is given: epochs and fractions, up to every voxel of every image.
MIN_WEIGHT, MAX_WEIGHT = 2.0**-20, 2.0**40

#: What is taken for granted where ``precision`` is fixed and no number is given.
_DEFAULT_MAX_ABS, _DEFAULT_MAX_WEIGHT = 8.0, 1.0


@dataclass(frozen=True)
class Aggregation:
    """How updates are added, and for how many the capacity is planned.

    Parameters
    ----------
    min_clients, max_clients : int
        Fewest and most contributions of an aggregate.
    precision : str
        Where the scales of exact schemes come from. ``"fixed"``: from `max_abs`. ``"auto"``: from a calibration in each
        round, which sites exchange before their updates. ``"previous"``: from the aggregate of the round before.
    max_abs : float or dict of str to float, optional
        With ``"fixed"`` alone, 8.0 if it is not given: the largest absolute value of any element, one number, or
        patterns over tensor names to numbers, with ``default`` for the tensors that no pattern matches.
    max_weight : float, optional
        Largest weight that any site may give. With ``"fixed"`` 1.0 if it is not given; else it is at most `MAX_WEIGHT`,
        and without it weights of `MIN_WEIGHT` to `MAX_WEIGHT` are taken.
    """

    min_clients: int = 2
    max_clients: int = 30
    precision: str = "fixed"
    max_abs: float | dict[str, float] | None = None
    max_weight: float | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISION_CHOICES:
            raise ConfigError(f"aggregation.precision is {show(self.precision)}; use {', '.join(PRECISION_CHOICES)}")
        for name in ("min_clients", "max_clients"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 2 <= value <= MAX_CLIENTS:
                raise ConfigError(
                    f"aggregation.{name} is {show(value)}; use a whole number from 2 to {MAX_CLIENTS} "
                    "(the sum of one update is that update)"
                )
        if self.min_clients > self.max_clients:
            raise ConfigError(
                f"aggregation.min_clients {self.min_clients} is above aggregation.max_clients {self.max_clients}"
            )
        if self.calibrated and self.max_abs is not None:
            raise ConfigError(
                f"aggregation.max_abs is {show(self.max_abs)}, and precision {self.precision!r} measures what it would "
                "say: leave one out"
            )
        if not self.calibrated:
            object.__setattr__(self, "max_abs", _DEFAULT_MAX_ABS if self.max_abs is None else self.max_abs)
            object.__setattr__(self, "max_weight", _DEFAULT_MAX_WEIGHT if self.max_weight is None else self.max_weight)
        if self.max_weight is not None:
            object.__setattr__(self, "max_weight", _positive(self.max_weight, "aggregation.max_weight"))
        if self.calibrated:
            if self.largest_weight > MAX_WEIGHT:  # weighted values would be beyond the largest scale
                raise ConfigError(
                    f"aggregation.max_weight is {show(self.max_weight)}; where scales are measured, use at most "
                    f"{MAX_WEIGHT:g}, or leave it out"
                )
            return
        if isinstance(self.max_abs, Mapping):
            if not self.max_abs:
                raise ConfigError("aggregation.max_abs is empty; give a number or {default: number, pattern: number}")
            bounds = {
                read_pattern(key, "aggregation.max_abs"): _positive(value, f"aggregation.max_abs[{show(key)}]")
                for key, value in self.max_abs.items()
            }
            object.__setattr__(self, "max_abs", bounds)
        else:
            object.__setattr__(self, "max_abs", _positive(self.max_abs, "aggregation.max_abs"))

    @property
    def calibrated(self) -> bool:
        """Whether scales are measured, and not given by ``max_abs``."""
        return self.precision != "fixed"

    @property
    def largest_weight(self) -> float:
        """The largest weight that is taken."""
        return MAX_WEIGHT if self.max_weight is None else self.max_weight

    @property
    def smallest_weight(self) -> float:
        """The smallest weight that is taken, beside those that round to nothing."""
        return MIN_WEIGHT if self.max_weight is None else 0.0

    @property
    def weakness(self) -> str | None:
        """What these numbers leave open although they work; None if nothing."""
        if self.min_clients > 2:
            return None
        return (
            "aggregation.min_clients is 2: of two sites each can compute the other's update from their sum; "
            "use 3 or more wherever more sites take part"
        )

    def warn(self) -> None:
        """Issue a `PrivacyWarning`, once in a process, if these numbers leave something open."""
        if self.weakness:
            warn_once(self.weakness, PrivacyWarning)

    def bounds_of(self, tensors: tuple[tuple[str, ...], ...]) -> list[float]:
        """Return ``max_abs`` of each tensor of a model; infinity where scales are measured.

        Parameters
        ----------
        tensors : tuple of tuple of str
            All names of each tensor that is sent.

        Raises
        ------
        ConfigError
            If no pattern matches a tensor and there is no ``default``, two patterns with different numbers match one,
            or a pattern matches none.
        """
        if self.max_abs is None:
            return [math.inf] * len(tensors)
        if isinstance(self.max_abs, float):
            return [self.max_abs] * len(tensors)
        patterns = tuple(pattern for pattern in self.max_abs if pattern != "default")
        found = matches(patterns, tensors)
        idle = unmatched(patterns, found)
        if idle is not None:
            raise ConfigError(f"aggregation.max_abs: pattern {idle!r} matches no tensor")
        bounds: list[float] = []
        for (name, *_), keys in zip(tensors, found, strict=True):
            numbers = {self.max_abs[key] for key in keys or ("default",) if key in self.max_abs}
            if len(numbers) > 1:
                raise ConfigError(
                    f"aggregation.max_abs: tensor {name!r} matches {', '.join(keys)} with different numbers"
                )
            if not numbers:
                raise ConfigError(f"aggregation.max_abs has no pattern for tensor {name!r}; add one, or a default")
            bounds += numbers
        return bounds

    @property
    def bounds(self) -> tuple[float, ...]:
        """All numbers of ``max_abs``; none where scales are measured."""
        if self.max_abs is None:
            return ()
        return (self.max_abs,) if isinstance(self.max_abs, float) else tuple(self.max_abs.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the ``aggregation`` block."""
        return {
            "min_clients": self.min_clients,
            "max_clients": self.max_clients,
            "precision": self.precision,
            "max_abs": dict(self.max_abs) if isinstance(self.max_abs, dict) else self.max_abs,
            "max_weight": self.max_weight,
        }


def _positive(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= sys.float_info.max:
        hint = " (YAML's numbers need a point and a sign: 1.0e+6)" if isinstance(value, str) else ""
        raise ConfigError(f"{name} is {show(value)}; use a number above 0{hint}")
    return float(value)
