"""The encrypted section of an update of an exact scheme on its way in: see `secagg.scheme.integer_codec`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .digits import small_tensors, split_balanced
from .flat_vector import FlatVector
from .scales import Scales

if TYPE_CHECKING:
    from .integer_codec import IntegerCodec

#: Room for the rounding of products, relative, when a value or weight is held against its bound.
_SLACK = 1 + 2.0**-48


class IntegerEncoder:
    """The encrypted section of one update on its way in."""

    def __init__(
        self,
        codec: IntegerCodec,
        vectors: Sequence[NDArray[Any]],
        shapes: Sequence[tuple[int, ...]],
        bounds: Sequence[float],
        weight: float,
        scales: Scales | None,
        counts: NDArray[np.float64] | None,
        residuals: Sequence[NDArray[np.float32]] | None,
        seed: int | None,
    ) -> None:
        self._codec = codec
        limit = codec.lanes.limit
        head = [*codec.weight.split(codec.whole_weight(weight)), 1]
        for item in scales.bins if scales is not None else ():
            head += codec.bin.split(item)
        plain = [np.array(head, dtype=np.float64), *([] if counts is None else [counts.ravel()])]
        self._sources: list[NDArray[Any]] = []
        self._factors: list[float] = []
        self._steps: list[float] = []
        self._caps: list[float] = []
        self._left: list[NDArray[np.float32]] = []
        self._owners: list[int] = []
        self._small_clipped = [0] * len(vectors)
        self.steps: list[float] = []
        for array in plain:
            self._add(array, 1.0, 1.0, limit, None, -1)
        idle = scales is not None and not scales.known  # it measures only, and what is due stays due
        for index, (vector, bound, small) in enumerate(zip(vectors, bounds, small_tensors(shapes), strict=True)):
            largest = codec.limit_of(small)
            step = (1.0 if idle else bound * codec.unit) / largest
            cap = largest * (weight / codec.largest_weight) * _SLACK if not codec.calibrated else float(largest)
            residual = None if residuals is None else residuals[index]
            self.steps.append(step)
            if idle:
                for _ in range(codec.lanes_a_value if small else 1):
                    self._add(np.zeros(vector.size, np.float32), 1.0, 1.0, limit, None, -1)
            elif small:
                for digit in self._digits(index, vector, weight, step, cap, residual):
                    self._add(digit, 1.0, 1.0, limit, None, -1)
            else:
                self._add(vector, weight, step, cap, residual, index)
        self._flat = FlatVector(self._sources)
        self._clipped = np.zeros(len(self._sources), dtype=np.int64)
        self._residuals = None if residuals is None else self._left
        self._seed = seed

    @property
    def clipped_by_tensor(self) -> list[int]:
        """Values so far that were beyond their bound, by tensor."""
        counts = list(self._small_clipped)
        for owner, count in zip(self._owners, self._clipped.tolist(), strict=True):
            if owner >= 0:
                counts[owner] += count
        return counts

    @property
    def clipped(self) -> int:
        """Values so far that were beyond their bound."""
        return sum(self.clipped_by_tensor)

    def encode(self, block: int, blocks: int) -> NDArray[np.uint64]:
        """Return words of whole blocks; see `secagg.scheme.codec.Encoder`."""
        lanes = self._codec.lanes
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
            self._residuals,
        )
        return words

    def _add(
        self,
        source: NDArray[Any],
        factor: float,
        step: float,
        cap: float,
        residual: NDArray[np.float32] | None,
        owner: int,
    ) -> None:
        self._sources.append(source)
        self._factors.append(factor)
        self._steps.append(step)
        self._caps.append(cap)
        self._left.append(np.zeros(source.size, np.float32) if residual is None else residual)
        self._owners.append(owner)

    def _digits(
        self,
        index: int,
        vector: NDArray[Any],
        weight: float,
        step: float,
        cap: float,
        residual: NDArray[np.float32] | None,
    ) -> Iterator[NDArray[np.float32]]:
        """Yield the digits of a small tensor, whose residual is settled by that."""
        codec = self._codec
        values = np.empty(vector.size)
        FlatVector([vector]).read(0, values, weight)
        if residual is not None:
            values += residual
        numbers = values / step
        self._small_clipped[index] = int(np.count_nonzero(~(np.abs(numbers) <= cap + (residual is not None))))
        room = cap if residual is None else min(math.ceil(cap), codec.limit_of(True))
        numbers = np.rint(np.clip(np.nan_to_num(numbers), -room, room))
        numbers = np.clip(numbers, -codec.limit_of(True), codec.limit_of(True))
        if residual is not None:
            left = values - numbers * step
            residual[:] = np.where(np.abs(left) <= np.finfo(np.float32).max, left, 0)
        yield from split_balanced(numbers, codec.lanes.limit, codec.lanes_a_value)
