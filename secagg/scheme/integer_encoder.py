"""The encrypted section of an update of an exact scheme on its way in: see `secagg.scheme.integer_codec`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .digits import small_tensors, split_balanced
from .flat_vector import FlatVector
from .integer_form import IntegerForm
from .scales import Scales

#: Room for the rounding of products, relative, when a value or weight is held against its bound.
_SLACK = 1 + 2.0**-48


class IntegerEncoder:
    """The encrypted section of one update on its way in."""

    def __init__(
        self,
        form: IntegerForm,
        vectors: Sequence[NDArray[Any]],
        shapes: Sequence[tuple[int, ...]],
        bounds: Sequence[float],
        weight: float,
        scales: Scales | None,
        counts: NDArray[np.float64] | None,
        residuals: Sequence[NDArray[np.float32]] | None,
        seed: int | None,
    ) -> None:
        self._form = form
        head = [*form.weight.split(form.whole_weight(weight)), 1]
        for item in scales.bins if scales is not None else ():
            head += form.bin.split(item)
        idle = scales is not None and not scales.known  # it measures only, and what is due stays due
        self._small = small = small_tensors(shapes)
        rests: Sequence[NDArray[np.float32] | None] = [None] * len(vectors) if residuals is None else residuals
        self._sources: list[NDArray[Any]] = []
        self._factors: list[float] = []
        self._steps: list[float] = []
        self._caps: list[float] = []
        self._left: list[NDArray[np.float32]] | None = None if residuals is None else []
        self._owners: list[int] = []  # tensors of the sources, −1 of what is no tensor
        self._small_clipped = [0] * len(vectors)
        self.steps = [
            (1.0 if idle else bound * form.unit) / form.limit_of(is_small)
            for bound, is_small in zip(bounds, small, strict=True)
        ]
        share = _SLACK * (1.0 if form.calibrated else weight / form.largest_weight)
        self._share = share
        self._add(np.array(head, dtype=np.float64))
        if counts is not None:
            self._add(counts.ravel())
        chosen = [index for index, is_small in enumerate(small) if is_small]
        if chosen:
            for digits in self._digits(chosen, vectors, weight, share, rests, idle):
                self._add(digits)
        for index, (vector, is_small) in enumerate(zip(vectors, small, strict=True)):
            if idle and not is_small:
                self._add(np.zeros(vector.size, np.float32))
            elif not is_small:
                self._add(vector, weight, self.steps[index], form.lanes.limit * share, rests[index], index)
        self._flat = FlatVector(self._sources)
        self._clipped = np.zeros(len(self._sources), dtype=np.int64)
        self._seed = seed

    @property
    def clipped_by_tensor(self) -> list[int]:
        """Values so far that were beyond their bound, by tensor."""
        counts = list(self._small_clipped)
        for owner, count in zip(self._owners, self._clipped.tolist(), strict=True):
            if owner >= 0:
                counts[owner] += count
        return counts

    def is_stochastic(self, tensor: int) -> bool:
        """Return whether a tensor's values are rounded at random; small ones never are."""
        return self._seed is not None and not self._small[tensor]

    def bound(self, tensor: int) -> float:
        """Return the largest magnitude of a weighted value of a tensor that is not clipped."""
        return self.steps[tensor] * self._form.limit_of(self._small[tensor]) * self._share

    @property
    def clipped(self) -> int:
        """Values so far that were beyond their bound."""
        return sum(self.clipped_by_tensor)

    def encode(self, block: int, blocks: int) -> NDArray[np.uint64]:
        """Return words of whole blocks; see `secagg.scheme.codec.Encoder`."""
        lanes = self._form.lanes
        words = np.empty(blocks * lanes.words, dtype=np.uint64)
        self._flat.quantise(
            block * lanes.block_values,
            words,
            lanes,
            self._factors,
            self._steps,
            self._caps,
            self._clipped,
            self._seed,
            self._left,
        )
        return words

    def _add(
        self,
        source: NDArray[Any],
        factor: float = 1.0,
        step: float = 1.0,
        cap: float | None = None,
        residual: NDArray[np.float32] | None = None,
        owner: int = -1,
    ) -> None:
        """Take the next source: by default of whole numbers."""
        self._sources.append(source)
        self._factors.append(factor)
        self._steps.append(step)
        self._caps.append(self._form.lanes.limit if cap is None else cap)
        if self._left is not None:
            self._left.append(np.zeros(source.size, np.float32) if residual is None else residual)
        self._owners.append(owner)

    def _digits(
        self,
        chosen: list[int],
        vectors: Sequence[NDArray[Any]],
        weight: float,
        share: float,
        residuals: Sequence[NDArray[np.float32] | None],
        idle: bool,
    ) -> list[NDArray[np.float32]]:
        """Return the digits of the small tensors, whose residuals are settled by that."""
        form, limit = self._form, self._form.limit_of(True)
        flat = FlatVector([vectors[index] for index in chosen])
        if idle:
            return [np.zeros(flat.size, np.float32)] * form.lanes_a_value
        sizes = [vectors[index].size for index in chosen]
        starts = np.cumsum([0, *sizes])
        values = np.empty(flat.size)
        flat.read(0, values, weight)
        fed_back = [residual for residual in (residuals[index] for index in chosen) if residual is not None]
        if fed_back:
            values += np.concatenate(fed_back)
        steps = np.repeat([self.steps[index] for index in chosen], sizes)
        numbers, cap = values / steps, limit * share
        beyond = ~(np.abs(numbers) <= cap + bool(fed_back))
        for index, count in zip(chosen, np.add.reduceat(np.append(beyond, 0), starts[:-1]), strict=True):
            self._small_clipped[index] = int(count) if vectors[index].size else 0
        room = min(math.ceil(cap), limit) if fed_back else cap
        numbers = np.clip(np.rint(np.clip(np.nan_to_num(numbers), -room, room)), -limit, limit)
        if fed_back:
            left = values - numbers * steps
            left = np.where(np.abs(left) <= np.finfo(np.float32).max, left, 0).astype(np.float32)
            for residual, start in zip(fed_back, starts, strict=False):
                residual[:] = left[start : start + residual.size]
        return split_balanced(numbers, form.lanes.limit, form.lanes_a_value)
