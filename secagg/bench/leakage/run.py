"""The whole benchmark: each setting's updates made, sent, read and attacked, row by row."""

from __future__ import annotations

import time
import warnings
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from ...errors import PrecisionWarning, PrivacyWarning
from ...setup.progress import Progress, Report
from ...ui.units import show_count
from .dense import features_cost, layer_inputs
from .identification import identified
from .images import CANDIDATES
from .inversion import gradient_cost, invert
from .metrics import psnr, ssim
from .settings import SETTING_LIST, Row, Setting, named_rows
from .training import updates
from .uploads import check_fit, encrypted
from .victims import Victim, make_victim
from .view import View, raw_view, server_view


def measure(
    images: int,
    seed: int,
    progress: Progress,
    rows: Mapping[str, Row] | None = None,
    settings: Sequence[Setting] = SETTING_LIST,
) -> dict[str, Any]:
    """Attack every setting.

    Parameters
    ----------
    images : int
        How many images of each setting are attacked, 1 to `CANDIDATES`.
    seed : int
        Of which images, of networks, masks, and the noise that attacks begin from.
    progress : callable
        Shows each row's attack.
    rows : mapping of str to Row, optional
        What of an update is encrypted, in place of each setting's own rows.
    settings : sequence of Setting
        Which ones.

    Returns
    -------
    dict
        ``images``, ``candidates``, ``seed``, ``seconds``, and ``settings``: of each its rows with ``psnr`` in dB,
        ``ssim``, ``identified`` (None if nothing is seen, and of what is no update), the share of values that is
        ``clear``, ``nbytes`` of an upload (None without one), and the ``pictures``, bytes of 0 to 255 in base64.

    Raises
    ------
    ConfigError
        If a configuration does not fit one of the networks; nothing has been attacked then.
    SecAggError
        Whatever a site refuses to encrypt for.
    """
    began = time.perf_counter()
    truth = sorted(torch.randperm(CANDIDATES, generator=torch.Generator().manual_seed(seed))[:images].tolist())
    found = []
    for setting in settings:
        for row in (rows or {}).values():
            if row.config is not None:
                check_fit(row.config, setting.title, make_victim(setting.victim, seed).parameters)
    with warnings.catch_warnings(), _one_thread():
        warnings.simplefilter("ignore", PrivacyWarning)  # which is what is measured
        warnings.simplefilter("ignore", PrecisionWarning)
        for setting in settings:
            mine = rows or {name: named_rows()[name] for name in setting.rows}
            found.append(_measure(setting, mine, truth, seed, progress))
    seconds = time.perf_counter() - began
    return {"images": images, "candidates": CANDIDATES, "seed": seed, "seconds": seconds, "settings": found}


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let PyTorch use one thread: in networks so small, others wait more than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _measure(
    setting: Setting, rows: Mapping[str, Row], truth: Sequence[int], seed: int, progress: Progress
) -> dict[str, Any]:
    began = time.perf_counter()
    victim = make_victim(setting.victim, seed)
    with progress(f"{setting.title}: {show_count(CANDIDATES, 'candidate')}"):
        states = updates(victim, setting.recipe)
    true = victim.images[truth]
    attack = _Attack(setting, victim, truth, raw_view(victim, states).values, seed)
    measured = []
    for name, row in rows.items():
        sent = [] if row.config is None else encrypted(row.config, [states[number] for number in truth])
        view = server_view(victim, sent) if sent else raw_view(victim, [states[number] for number in truth])
        if row.mask is not None:
            view = view.without(row.mask(victim, seed))
        with progress(f"{setting.title}: {row.title}") as report:
            found = attack.images(view, report)
        measured.append(
            {
                "name": name,
                "title": row.title,
                **_likeness(found, true),
                "identified": attack.identified(view),
                "clear": view.share,
                "nbytes": len(sent[0]) if sent else None,
            }
        )
    others = victim.images.sum(0) - true
    mean = {"name": "mean", "title": "mean of the other images", **_likeness(others / (CANDIDATES - 1), true)}
    measured.append(mean | {"identified": None, "clear": None, "nbytes": None})
    return {
        "name": setting.name,
        "title": setting.title,
        "parameters": sum(victim.sizes.values()),
        "edge": true.shape[-1],
        "pictures": _pictures(true),
        "seconds": time.perf_counter() - began,
        "rows": measured,
    }


class _Attack:
    """What a server that knows the network does with what it sees, in one setting."""

    def __init__(self, setting: Setting, victim: Victim, truth: Sequence[int], candidates: Tensor, seed: int) -> None:
        self._setting, self._victim, self._truth, self._seed = setting, victim, truth, seed
        self._candidates = candidates
        targets = victim.targets[list(truth)]
        self._targets = targets if setting.told else victim.guessed(targets)
        self._shape = victim.images[list(truth)].shape

    def images(self, view: View, report: Report) -> Tensor:
        """Return of each image what the better attack gives: that whose gradient is more like what is seen."""
        cost = gradient_cost(self._victim, view, self._targets)
        found = [invert(cost, self._shape, self._setting.steps, self._seed, report)]
        inputs = layer_inputs(self._victim, view)
        if inputs is not None:
            by_features = features_cost(self._victim, inputs)
            found.append(invert(by_features, self._shape, self._setting.steps, self._seed, report))
        costs = torch.stack([cost(images) for images in found]).detach()
        return torch.stack(found)[costs.argmin(0), torch.arange(len(self._truth))]

    def identified(self, view: View) -> float | None:
        """Return the share of images that are found among all candidates."""
        return identified(view, self._candidates, self._truth)


def _likeness(found: Tensor, true: Tensor) -> dict[str, Any]:
    return {"psnr": fmean(psnr(found, true)), "ssim": fmean(ssim(found, true)), "pictures": _pictures(found)}


def _pictures(images: Tensor) -> list[str]:
    grey = (images * 255).round().to(torch.uint8)
    return [b64encode(image.numpy().tobytes()).decode() for image in grey]
