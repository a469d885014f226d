"""The encrypted section of an aggregate of an exact scheme on its way out: see `secagg.scheme.integer_codec`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .digits import join_balanced, small_tensors
from .flat_vector import FlatVector
from .integer_form import IntegerForm
from .scales import BINS, UNKNOWN, Scales

#: Room for the rounding of products, relative, when a value or weight is held against its bound.
_SLACK = 1 + 2.0**-48


class IntegerDecoder:
    """The encrypted section of one aggregate on its way out.

    Attributes
    ----------
    fault : str or None
        Why it is no sum of what honest sites encode; None as long as nothing speaks against it. What comes behind a
        fault is decoded all the same.
    weight_sum : float
        Sum of the weights, once the head is decoded.
    scales : Scales or None
        Those that the updates were made under, where they are measured.
    counts : ndarray or None
        What sites have counted in bins, (tensors, `BINS`), where they do so in each update.
    bounds : list of float
        Bounds of weighted values of all tensors that are sent.
    """

    def __init__(
        self,
        form: IntegerForm,
        targets: Sequence[NDArray[Any]],
        shapes: Sequence[tuple[int, ...]],
        places: Sequence[int],
        bounds: Sequence[float],
        sites: int,
    ) -> None:
        self._form, self._sites, self._where = form, sites, places
        count = len(bounds)
        self._head = np.empty(form.head_values(count))
        self._head_blocks = -(-self._head.size // form.block_values)
        self._waiting: list[NDArray[np.uint64]] = []
        self.counts = np.empty((count, BINS)) if form.counts_bins else None
        small = small_tensors(shapes)
        self._small = [index for index, is_small in enumerate(small) if is_small]
        self._other = [index for index, is_small in enumerate(small) if not is_small]
        self._flat_small = FlatVector([targets[index] for index in self._small])
        self._small_sizes = [targets[index].size for index in self._small]
        self._digits = [np.empty(self._flat_small.size) for _ in range(form.lanes_a_value if self._small else 0)]
        counted = [] if self.counts is None else [self.counts.reshape(-1)]
        vectors = [self._head, *counted, *self._digits, *(targets[index] for index in self._other)]
        self._flat = FlatVector(vectors)
        self._factors = [1.0] * len(vectors)
        self.fault: str | None = None
        self.weight_sum = 1.0
        self.scales: Scales | None = None
        self.bounds = [bound * form.unit for bound in bounds]

    def decode(self, block: int, plain: NDArray[np.uint64]) -> None:
        """Write the mean of whole blocks; see `secagg.scheme.codec.Decoder`."""
        lanes, words = self._form.lanes, self._form.lanes.words
        if block < self._head_blocks:
            self._waiting.append(plain.copy())
            if block + plain.size // words < self._head_blocks:
                return
            plain, block = np.concatenate(self._waiting), 0
            self._waiting = []
            FlatVector([self._head]).dequantise(0, plain[: self._head_blocks * words], lanes, [1.0], self._sites)
            self._read_head()
        if self._flat.dequantise(block * lanes.block_values, plain, lanes, self._factors, self._sites) >= 0:
            self._blame("a value is none that so many sites can give together")

    def finish(self) -> None:
        """Write the mean of the tensors that take several lanes a value: all blocks are decoded."""
        form = self._form
        if self._small:
            limit = form.limit_of(True)
            values = join_balanced(self._digits, form.lanes.limit)
            values *= np.repeat([self._bound(index) / limit for index in self._small], self._small_sizes)
            self._flat_small.write(0, values, 1 / self.weight_sum)
        if self.counts is not None:
            counts = self.counts
            if not bool((counts >= 0).all() and (counts.sum(axis=1) <= self._sites).all()):
                self._blame("what it counts in bins is none that so many sites can count together")

    def following(self) -> Scales | None:
        """Return the scales of the next round, where they follow from this one."""
        if self.counts is None or self.scales is None:
            return None
        return self.scales.following(self.counts, {self._where[index] for index in self._small})

    def _read_head(self) -> None:
        """Take weight, number of sites and scales from the sums of the first values."""
        form, sites = self._form, self._sites
        count = form.weight.count
        values = self._head.tolist()
        total = form.weight.join(values[:count])
        weight_sum = total / form.weight.largest * form.largest_weight
        if values[count] != sites:
            self._blame(f"it has the values of {values[count]:g} sites, and lists {sites}")
        elif not 0 < weight_sum <= sites * form.largest_weight * _SLACK:
            self._blame(f"the sum of weights is {weight_sum:g}")
        else:
            self.weight_sum = weight_sum
        if form.calibrated:
            self.scales = self._read_scales(values[count + 1 :])
            self.bounds = self.scales.bounds
        last = len(self._factors) - len(self._other)
        self._factors[last:] = [self._bound(index) / form.lanes.limit / self.weight_sum for index in self._other]

    def _read_scales(self, digits: list[float]) -> Scales:
        form, sites, width = self._form, self._sites, self._form.bin.count
        sums = [form.bin.join(digits[at : at + width]) for at in range(0, len(digits), width)]
        bins = tuple(total // sites for total in sums)
        whole = all(total == item * sites for total, item in zip(sums, bins, strict=True))
        known = all(0 <= item < BINS for item in bins)
        unknown = form.counts_bins and all(item == UNKNOWN for item in bins)
        if not whole or not (known or unknown):
            self._blame("its sites have used different scales")
            return Scales.unknown(len(bins))
        return Scales(bins)

    def _bound(self, index: int) -> float:
        return self.bounds[self._where[index]]

    def _blame(self, fault: str) -> None:
        self.fault = self.fault or fault
