"""Cases as a network takes them: MONAI's transforms, and as much of their work kept in memory as fits."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset, MetaTensor
from monai.transforms import (
    Compose,
    EnsureTyped,
    Lambdad,
    LoadImage,
    NormalizeIntensity,
    Orientationd,
    RandCropByPosNegLabeld,
    ScaleIntensityRange,
    Spacingd,
    SpatialPadd,
    Transform,
)

from secagg.errors import ConfigError

from .decathlon import Case, Report, is_ct, reading
from .settings import Settings

_KEYS = ("image", "label")

#: Share of the machine's memory that a site keeps prepared cases in; what is more is read again in each pass.
_CACHED_SHARE = 0.25


def prepare(
    settings: Settings, training: Sequence[Case], held_out: Sequence[Case], report: Report
) -> tuple[CacheDataset, CacheDataset]:
    """Return patches of the cases to train with, drawn anew each time, and the whole held-out cases.

    Each is a dict of ``image`` and ``label``, float32 tensors with the channel first, on the grid of the settings.

    Parameters
    ----------
    settings : Settings
        What all sites do alike.
    training, held_out : sequence of Case
        The cases.
    report : callable
        Called with the number of cases that were prepared, and of all that are kept in memory.

    Raises
    ------
    ConfigError
        If one of these cannot be read, or has voxels that are NaN or infinite.
    """
    voxels = max(_voxels(case, settings) for case in (*training, *held_out))
    memory = _CACHED_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    fit = int(memory // (4 * voxels * (len(settings.modality) + 1)))
    counted = _Counted(report, min(fit, len(training) + len(held_out)))
    whole = [*_transforms(settings), counted]
    drawn = [
        SpatialPadd(_KEYS, settings.patch),
        RandCropByPosNegLabeld(_KEYS, "label", settings.patch, num_samples=settings.samples),
    ]
    try:
        return _cached(training, [*whole, *drawn], fit), _cached(held_out, whole, max(0, fit - len(training)))
    except RuntimeError as error:  # MONAI's, around what `_Load` and `scale` say of which file
        if isinstance(error.__cause__, ConfigError):
            raise error.__cause__ from error
        raise ConfigError(f"a case cannot be prepared: {error.__cause__ or error}") from error


def _cached(cases: Sequence[Case], transforms: Sequence[Transform], count: int) -> CacheDataset:
    items = [{"image": case.image, "label": case.label} for case in cases]
    return CacheDataset(items, Compose(transforms), cache_num=count, num_workers=1, progress=False)


def _transforms(settings: Settings) -> list[Transform]:
    """Return what makes of two files an image and a label on one grid, all that does not depend on chance."""
    low, high = settings.window or (0.0, 1.0)
    window, unit = ScaleIntensityRange(low, high, 0.0, 1.0, clip=True), NormalizeIntensity(nonzero=True)
    scales: list[Any] = [window if is_ct(name) else unit for name in settings.modality]

    def scale(image: MetaTensor) -> MetaTensor:
        for channel, change in enumerate(scales):
            image[channel] = change(image[channel])
        if not torch.isfinite(image).all():
            raise ConfigError(
                f"{image.meta['filename_or_obj']} has voxels that are NaN or infinite: give them a number"
            )
        return image

    return [
        _Load(),
        _OneGrid(),
        Orientationd(_KEYS, axcodes="RAS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
        Spacingd(_KEYS, pixdim=settings.spacing, mode=("bilinear", "nearest")),
        Lambdad("image", scale, track_meta=False),
        EnsureTyped(_KEYS, track_meta=False),
    ]


class _Load(Transform):
    """Loads the files of a case; what is damaged is told by its name, which MONAI's error leaves out."""

    def __init__(self) -> None:
        self._load = LoadImage(reader="NibabelReader", ensure_channel_first=True)

    def __call__(self, case: Mapping[str, Path]) -> dict[str, Any]:
        loaded = {}
        for key, path in case.items():
            with reading(path):
                loaded[key] = self._load(path)
        return loaded


class _OneGrid(Transform):
    """Lays the label where its image lies: of affines that differ by rounding, resampling makes unlike sizes."""

    def __call__(self, case: dict[str, Any]) -> dict[str, Any]:
        case["label"].affine = case["image"].affine
        return case


class _Counted(Transform):
    """Passes cases on, and reports how many there were, until all that are kept are read."""

    def __init__(self, report: Report, total: int) -> None:
        self._report, self._total, self._done = report, total, 0

    def __call__(self, case: dict[str, Any]) -> dict[str, Any]:
        if self._done < self._total:
            self._done += 1
            self._report(self._done, self._total)
        return case


def _voxels(case: Case, settings: Settings) -> float:
    """Return how many voxels a case has once it is resampled and, to train with, padded."""
    edges = np.multiply(case.size, case.spacing) / settings.spacing
    return float(np.prod(np.maximum(np.ceil(edges), settings.patch)))
