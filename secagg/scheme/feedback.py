"""Error feedback: what quantisation dropped from one update of a site is added to its next.

Source: Seide et al., "1-Bit Stochastic Gradient Descent", Interspeech 2014; Karimireddy et al., arXiv 1901.09847.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..errors import MismatchError

Residuals = list[NDArray[np.float32]]


@dataclass(frozen=True)
class Carry:
    """What a site's latest update leaves to its next.

    Parameters
    ----------
    model : str
        What tells the model, the fingerprint of its layout: what one tensor dropped is not due to another.
    round : int
        Of the update.
    before, after : list of ndarray
        Residuals in units of weight · value, float32, one array a vector: those that the round began with, none
        if it began with nothing, and those that it left.
    """

    model: str
    round: int
    before: Residuals = field(repr=False)  # they are secret
    after: Residuals = field(repr=False)

    def fits(self, model: str, sizes: Sequence[int]) -> bool:
        """Return whether it is of a model, whose vectors have these sizes."""
        each = [self.before, self.after] if self.before else [self.after]
        return model == self.model and all([array.size for array in arrays] == list(sizes) for arrays in each)


class Feedback:
    """The carry of one site from update to update.

    Attributes
    ----------
    carry : Carry or None
        What there is, or nothing yet. It is replaced as a whole, and never changed.
    begun : bool
        Whether there has been an update, or somebody has restored what there was before, be it nothing.
    """

    def __init__(self) -> None:
        self.carry: Carry | None = None
        self.begun = False
        self._restored = False

    def due(self, model: str, round: int, sizes: Sequence[int]) -> Residuals:
        """Return what to add to the update of a round, not to be changed; an empty list if that is nothing.

        A round that is encrypted again begins where its first update began. Another `model` begins with nothing.

        Raises
        ------
        MismatchError
            If what was restored is of another model: that is a mistake, or a loss that somebody should know of.
        """
        carry = self.carry
        fits = carry is not None and carry.fits(model, sizes)
        if self._restored and carry is not None and not fits:
            raise MismatchError(
                "the carry that was restored is of another model than this update (names, shapes, dtypes or what is "
                "encrypted): restore that of this model, or none with restore_carry(b'')"
            )
        return [] if carry is None or not fits else carry.before if round == carry.round else carry.after

    def begin(self, model: str, round: int, sizes: Sequence[int]) -> Residuals:
        """Return what is `due`, zeros if that is nothing, as arrays that the encoder may change."""
        due = self.due(model, round, sizes)
        return [residual.copy() for residual in due] or [np.zeros(size, dtype=np.float32) for size in sizes]

    def commit(self, model: str, round: int, residuals: Residuals) -> None:
        """Keep what the update of a round dropped, once that update is whole."""
        carry = self.carry
        before: Residuals = []
        if carry is not None and carry.model == model:
            before = carry.before if round == carry.round else carry.after
        self.carry, self.begun, self._restored = Carry(model, round, before, residuals), True, False

    def withdraw(self, round: int) -> None:
        """Go back to what the round began with: its update is in no sum, so that what it paid back is due again."""
        carry = self.carry
        if carry is not None and carry.round == round:
            before = carry.before or [np.zeros_like(residual) for residual in carry.after]
            self.carry = Carry(carry.model, round, carry.before, before)

    def restore(self, carry: Carry | None) -> None:
        """Go on as the one that had this carry."""
        self.carry, self.begun, self._restored = carry, True, True
