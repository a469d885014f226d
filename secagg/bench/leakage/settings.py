"""What the table has: networks and trainings that are attacked, and what of an update is encrypted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from ...config import Config
from ..settings import SETTINGS
from .masks import random_mask, sensitive_mask
from .training import Recipe
from .victims import Victim, lenet, segresnet

#: What is beside every configuration: nothing encrypted, and everything.
RAW, ALL = "raw", "all"

#: Three sites, the smallest federation of which no two know the third's update from the sum.
_SITES = 3

_ONE_STEP = Recipe()

#: Takes a victim and a seed, and returns which values are hidden.
Mask = Callable[[Victim, int], Tensor]


@dataclass(frozen=True)
class Row:
    """One way to send an update: as it is (RAW), under a configuration, or with a mask in place of a configuration."""

    title: str
    config: Config | None = None
    mask: Mask | None = None


@dataclass(frozen=True)
class Setting:
    """A network, what a site does with it, and how hard it is attacked.

    Parameters
    ----------
    name, title : str
        For files, and for readers.
    victim : callable
        Makes the network and its data.
    recipe : Recipe
        How a site trains.
    steps : int
        Of an inversion.
    rows : sequence of str
        Which of `named_rows`, where no configuration is asked about.
    told : bool
        Whether the inversion knows the target. Identification does: candidates come with their own.
    """

    name: str
    title: str
    victim: Callable[[], Victim]
    recipe: Recipe = _ONE_STEP
    steps: int = 300
    rows: Sequence[str] = (RAW, "conv", "first-middle-last", ALL)
    told: bool = True


_MASKS: Mapping[str, Row] = {
    "random-50": Row("random 50 % of the values", mask=lambda victim, seed: random_mask(victim, 0.5, seed)),
    "sensitive-10": Row("FedML-HE's map, top 10 %", mask=lambda victim, seed: sensitive_mask(victim, 0.1)),
    "sensitive-50": Row("FedML-HE's map, top 50 %", mask=lambda victim, seed: sensitive_mask(victim, 0.5)),
}

_FEW = (RAW, "conv", ALL)

_ELU, _RELU = partial(segresnet, "ELU"), partial(segresnet, "RELU")

SETTING_LIST: Sequence[Setting] = (
    Setting("lenet", "LeNet, one SGD step", lenet, rows=(RAW, "conv", "first-middle-last", *_MASKS, ALL)),
    Setting("segresnet", "SegResNet with ELU, one SGD step", _ELU, steps=400),
    Setting("lenet-adam", "LeNet, one Adam step", lenet, Recipe("adam"), rows=_FEW),
    Setting("lenet-20", "LeNet, 20 SGD steps", lenet, Recipe(steps=20), rows=_FEW),
    Setting("segresnet-unknown", "SegResNet with ELU, mask unknown", _ELU, steps=400, rows=_FEW, told=False),
    Setting("segresnet-relu", "SegResNet with ReLU", _RELU, steps=400, rows=_FEW),
)


def product_config(encrypt: str) -> Config:
    """Return the configuration that a mode is measured under: the preset ``exact``, scales measured, three sites."""
    return SETTINGS["exact"].config(_SITES, encrypt, min_clients=_SITES)


def named_rows() -> dict[str, Row]:
    """Return all rows by name."""
    modes = ("conv", "first-middle-last", ALL)
    return {RAW: Row(RAW), **{mode: Row(mode, product_config(mode)) for mode in modes}, **_MASKS}


def rows_beside(name: str, config: Config | None = None) -> dict[str, Row]:
    """Return the rows where one is asked about, a mode or a configuration of that title: it beside raw and all."""
    rows = named_rows()
    if config is not None:
        return {RAW: rows[RAW], "asked": Row(name, config), ALL: rows[ALL]}  # whatever its file is called
    return {one: rows[one] for one in dict.fromkeys((RAW, name, ALL))}
