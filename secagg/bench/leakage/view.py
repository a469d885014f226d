"""What a server sees: the clear values of an upload, read without any key, and a gap wherever there is ciphertext."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...scheme.clear_codec import FixedPointCodec
from ...scheme.ring import CLEAR_BLOCK_SIZE
from ...wire.update import Update
from .victims import Victim


@dataclass(frozen=True)
class View:
    """What is seen of the updates of several images.

    Parameters
    ----------
    values : Tensor
        Of shape (images, values of the model), NaN where nothing is seen: the same places in all images. Each image is
        known up to a factor, the site's weight.
    parts : sequence of slice
        Where values have one factor: all of them, or each tensor its own where the scales are encrypted too.
    """

    values: Tensor
    parts: Sequence[slice]

    @cached_property
    def seen(self) -> Tensor:
        """Which values are seen, bool of shape (values,)."""
        return ~self.values[0].isnan()

    @property
    def share(self) -> float:
        """How many of all values are seen."""
        return float(self.seen.float().mean())

    def without(self, hidden: Tensor) -> View:
        """Return what is left if values are hidden besides, by a mask of shape (values,)."""
        return View(self.values.masked_fill(hidden, torch.nan), self.parts)

    def cosines(self, others: Tensor) -> Tensor:
        """Return how alike all images are to updates of shape (images, values), or (1, values).

        The mean over the parts that are seen of the cosine similarity, of shape (images,); 0 where nothing is seen.
        """
        found = [
            torch.nn.functional.cosine_similarity(self.values[:, places], others[:, places], dim=1)
            for places in self.places
        ]
        return torch.stack(found).mean(0) if found else torch.zeros(len(self.values))

    @cached_property
    def places(self) -> list[Tensor]:
        """Where in each of the parts values are seen; parts of which nothing is seen are left out."""
        numbers = torch.arange(self.values.shape[1])
        found = [numbers[part][self.seen[part]] for part in self.parts]
        return [places for places in found if len(places)]


def raw_view(victim: Victim, states: Sequence[dict[str, Tensor]]) -> View:
    """Return what a server sees of updates that nothing encrypts: all values."""
    values = torch.stack([victim.flat({name: value[None] for name, value in state.items()})[0] for state in states])
    return View(values, [slice(values.shape[1])])


def server_view(victim: Victim, uploads: Sequence[bytes]) -> View:
    """Return what a server sees of real uploads, which must be of one configuration.

    Raises
    ------
    FormatError, DigestError
        If they are no updates, or damaged.
    """
    read = [Update.from_bytes(upload) for upload in uploads]
    rows = [_row(victim, _clear(update)) for update in read]
    ends = np.cumsum([0, *victim.sizes.values()]).tolist()
    whole = [slice(ends[-1])]
    each = [slice(start, end) for start, end in pairwise(ends)]
    return View(torch.stack(rows), each if read[0].header.aggregation.calibrated else whole)


def _row(victim: Victim, clear: dict[str, NDArray[np.float64]]) -> Tensor:
    parts = [
        torch.from_numpy(clear[name]).float() if name in clear else torch.full((size,), torch.nan)
        for name, size in victim.sizes.items()
    ]
    return torch.cat(parts)


def _clear(update: Update) -> dict[str, NDArray[np.float64]]:
    """Return the clear tensors of an update by name, all times the site's weight; digests are checked.

    They are sent by their bounds. Bounds that the configuration names are in the header; measured ones are encrypted,
    and a tensor is known up to its own.
    """
    header = update.header
    aggregation = header.aggregation
    specs = header.layout.role("clear")
    targets = [np.empty(spec.size) for spec in specs]
    named = dict.fromkeys((spec.name for spec in specs), 1.0)
    if not aggregation.calibrated:
        named = {name: bound * aggregation.largest_weight for name, bound in header.layout.bounds(aggregation).items()}
    decoder = FixedPointCodec(aggregation).decoder(targets)
    for frame, payload in update.frames():
        if frame.section == "clear":
            words = np.frombuffer(payload, np.uint64, count=frame.blocks * CLEAR_BLOCK_SIZE)
            decoder.decode(frame.first_block, words, [named[spec.name] for spec in specs], 1.0)
    return {spec.name: values for spec, values in zip(specs, targets, strict=True)}
