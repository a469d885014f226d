"""What is compared: Clara's four settings, with its CKKS params by tenseal, and the presets that came after it."""

from __future__ import annotations

from collections.abc import Mapping

from ...config import Config
from ..settings import SETTINGS

#: In the order of the tables, and of the turns in a round.
TITLES: Mapping[str, str] = {
    "raw": "raw",
    "full": "HE full",
    "conv": "HE conv",
    "three": "HE three",
    "exact": "exact",
    "smallest": "smallest",
}

#: What the titles stand for.
LEGEND = (
    "HE: tenseal, CKKS with Clara's params; conv: convolutional layers; three: first, middle and last layer; exact, "
    "smallest: presets of seal BGV and flashe, full"
)

#: Those that are repeated with other seeds, for the Dice, and those that many sites use.
WHOLE = ("raw", "full", "exact", "smallest")

_ENCRYPT = {"conv": "conv", "three": "first-middle-last"}

#: What no site has more of: two of them share 49 patches.
_MOST_PATCHES = 32


def config(setting: str, sites: int) -> Config:
    """Return the configuration of an encrypted setting for so many sites, which all take part in each round."""
    found = SETTINGS[setting if setting in SETTINGS else "tenseal"]
    weights = {"max_weight": _MOST_PATCHES} if found.fixed else {}
    return found.config(sites, _ENCRYPT.get(setting, "all"), min_clients=sites, **weights)
