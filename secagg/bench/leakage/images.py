"""The images that are attacked: axial slices of one brain, MNI152, which comes with nilearn: nothing is downloaded."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

#: Slices are taken between these heights, in mm from the lowest: all of them have much brain.
_LOWEST, _HIGHEST = 45, 130

#: How many slices there are: each is attacked, or one of those among which the server looks for the true one.
CANDIDATES = 60

#: Heights are told apart as so many classes.
CLASSES = 10


def slices(size: int) -> Tensor:
    """Return the slices from below, float32 of shape (CANDIDATES, 1, size, size), with values from 0 to 1."""
    return _cut(_volumes()[0], size)


def heights() -> Tensor:
    """Return the class of height of each slice, int64 of shape (CANDIDATES,)."""
    return torch.arange(CANDIDATES) * CLASSES // CANDIDATES


def white_matter(size: int) -> Tensor:
    """Return where each slice is white matter, int64 of shape (CANDIDATES, size, size): 1 there, else 0."""
    return (_cut(_volumes()[1], size)[:, 0] > 0.5).long()


@lru_cache(maxsize=1)
def _volumes() -> tuple[Tensor, Tensor]:
    from nilearn.datasets import load_mni152_template, load_mni152_wm_template

    intensity = load_mni152_template(resolution=1).get_fdata(dtype=np.float32)
    matter = load_mni152_wm_template(resolution=1).get_fdata(dtype=np.float32)
    return torch.from_numpy(intensity / intensity.max()), torch.from_numpy((matter > 0.5).astype(np.float32))


def _cut(volume: Tensor, size: int) -> Tensor:
    """Return the slices of a volume, made square by a margin, each pixel the mean of what it covers."""
    found = volume[:, :, torch.linspace(_LOWEST, _HIGHEST, CANDIDATES).long()].permute(2, 0, 1)[:, None]
    wide = max(found.shape[2:]) - torch.tensor(found.shape[2:])
    margins = [int(margin) for side in wide.flip(0) for margin in (side // 2, side - side // 2)]
    return functional.interpolate(functional.pad(found, margins), size=(size, size), mode="area")
