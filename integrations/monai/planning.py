"""A proposal for the ``task:`` block of a data set: spacing, patch and window that suit its cases."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from secagg.errors import ConfigError

from .decathlon import Case, Decathlon, Report, is_ct, read_image, read_label
from .settings import EDGE_STEP, Settings

#: Largest edge of a patch unless told otherwise.
LARGEST_EDGE = 96

#: Percent of the voxels of the classes that lie below the window, and above: nnU-Net's (Isensee et al. 2021).
_OUTSIDE = 0.5

#: So many voxels of each of so many cases tell where the window lies.
_SAMPLE = 10_000
_MOST_CASES = 32


def propose(data: Decathlon, cases: Sequence[Case], report: Report, *, largest: int = LARGEST_EDGE) -> Settings:
    """Return settings for a data set: the median spacing, and a patch as large as its median case, or `largest`.

    Parameters
    ----------
    data : Decathlon
        The data set.
    cases : sequence of Case
        Its cases; of CT, images and labels of some are read once more, for the window.
    report : callable
        Called with the number of cases that were read, and of all of these.
    largest : int
        Largest edge of a patch in voxels.
    """
    spacing = np.median([case.spacing for case in cases], axis=0)
    edges = np.median([np.multiply(case.size, case.spacing) for case in cases], axis=0) / spacing
    patch = np.clip(edges // EDGE_STEP * EDGE_STEP, EDGE_STEP, largest)
    return Settings(
        modality=data.modality,
        labels=data.labels,
        spacing=tuple(float(f"{size:.3g}") for size in spacing),
        patch=tuple(map(int, patch)),
        window=_window(data, cases, report) if any(map(is_ct, data.modality)) else None,
    )


def _window(data: Decathlon, cases: Sequence[Case], report: Report) -> tuple[float, float]:
    """Return between which intensities the CT channels of almost all voxels lie that are of a class."""
    channels = [number for number, name in enumerate(data.modality) if is_ct(name)]
    samples, cases = [], cases[:: -(-len(cases) // _MOST_CASES)]
    for done, case in enumerate(cases):
        report(done, len(cases))
        inside = read_image(case)[read_label(case) > 0][:, channels].ravel()
        if not np.isfinite(inside).all():
            raise ConfigError(f"{case.image} has voxels of a class that are NaN or infinite: give them a number")
        samples.append(inside[:: max(1, len(inside) // _SAMPLE)])
    report(len(cases), len(cases))
    values = np.concatenate(samples)
    if not len(values):  # labels of background alone
        return -1000.0, 1000.0
    low, high = np.percentile(values, (_OUTSIDE, 100 - _OUTSIDE))
    return float(np.floor(low)), float(max(np.ceil(high), np.floor(low) + 1))
