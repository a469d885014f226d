"""Error feedback: what quantisation dropped from one update of a site is added to its next.

Source: Seide et al., "1-Bit Stochastic Gradient Descent", Interspeech 2014; Karimireddy et al., arXiv 1901.09847.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Residuals = list[NDArray[np.float32]]


class Feedback:
    """The residuals of one site, in units of a quantisation step, an array for each vector of its model.

    They live as long as the object: a site that restarts begins with nothing to carry.
    """

    def __init__(self) -> None:
        self._model = ""
        self._round: int | None = None
        self._before: Residuals = []
        self._after: Residuals = []

    def begin(self, model: str, round: int, sizes: Sequence[int]) -> Residuals:
        """Return what to add to the update of a round: arrays that the encoder may change.

        A round that is encrypted again begins where its first update began. Another `model`, which a layout's
        fingerprint tells, begins with zeros.
        """
        carried = self._before if round == self._round else self._after
        if model != self._model or not carried:
            return [np.zeros(size, dtype=np.float32) for size in sizes]
        return [residual.copy() for residual in carried]

    def commit(self, model: str, round: int, residuals: Residuals) -> None:
        """Keep what the update of a round dropped, once that update is whole."""
        if model != self._model:
            self._model, self._round, self._after = model, None, []
        if round != self._round:
            self._round, self._before = round, self._after
        self._after = residuals
