"""How fast something grows: the exponent of a power of what it depends on, fitted to what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

#: Of the interval that holds the slope.
CONFIDENCE = 0.95

#: A slope is called flat, or linear, if it is no further from 0, or from 1; of one less certain nothing is said.
_NEAR, _CERTAIN = 0.1, 0.5


@dataclass(frozen=True)
class Slope:
    """``y = exp(intercept) · x ** slope``, by least squares of the logarithms.

    Parameters
    ----------
    slope, intercept, r_squared : float
        Of the fit.
    low, high : float
        Ends of the 95 % interval of the slope, from its standard error and Student's distribution.
    """

    slope: float
    intercept: float
    r_squared: float
    low: float
    high: float

    @property
    def words(self) -> str:
        """The slope with half of its interval, and what that means."""
        half = (self.high - self.low) / 2
        number = f"{self.slope:.2f} ± {half:.2f}"
        if half > _CERTAIN:
            return f"{number}: too uncertain to tell"
        for name, value in (("flat", 0.0), ("linear", 1.0)):
            if abs(self.slope - value) <= _NEAR:
                return f"{number} = {name}"
        return f"{number} = {'slower' if self.slope < 1 else 'faster'} than linear"


def fit(xs: Sequence[float], ys: Sequence[float]) -> Slope | None:
    """Return the slope of the points; None of fewer than three positive ones, which tell nothing of an error."""
    points = [(x, y) for x, y in zip(xs, ys, strict=True) if x > 0 and y > 0]
    if len(points) < 3:
        return None
    x, y = np.log(np.array(points)).T
    if np.ptp(y) == 0:  # there is no variance to explain, and SciPy divides by it
        return Slope(0.0, float(y[0]), 1.0, 0.0, 0.0)
    line = stats.linregress(x, y)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(points) - 2) * line.stderr)
    slope = float(line.slope)
    return Slope(slope, float(line.intercept), float(line.rvalue) ** 2, slope - half, slope + half)
