"""What a round of one model costs with any number of sites: exact bytes, and seconds carried over from others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from scipy import stats

from ...setup.sizes import Sizes, sizes_of
from ...wire.layout import Layout
from ..settings import SETTINGS
from .links import Cost
from .model import empty_model

#: Sites that were in the sums whose decryption was measured at the model's size.
ADDED = 2


@dataclass(frozen=True)
class Costs:
    """The costs of a setting and model.

    A planned number of sites changes how many bytes an update has, and seconds are taken to grow with these bytes. What
    each further site adds to decryption is a stream of its own, whose seconds a byte are fitted to rounds of up to a
    thousand sites of a smaller model.

    Parameters
    ----------
    setting : str
        Of `SETTINGS`.
    parameters : int
        Of the model.
    measured : Cost
        With `ADDED` sites in the sum.
    stream_seconds : float
        Of decryption, for each site and byte of an update.
    """

    setting: str
    parameters: int
    measured: Cost
    stream_seconds: float

    @classmethod
    def of(cls, size: Mapping[str, Any], sites: Sequence[Mapping[str, Any]]) -> Costs:
        """Return them from a row of ``parameters``, and the rows of ``sites`` of the same setting."""
        work = [row["sites"] * row["up_nbytes"] for row in sites]
        line = stats.linregress(work, [row["decrypt_seconds"] for row in sites])
        names = Cost.__dataclass_fields__
        measured = Cost(**{name: size[name] for name in names})
        return cls(size["setting"], size["parameters"], measured, max(0.0, float(line.slope)))

    def cost(self, sites: int) -> Cost:
        """Return the cost of a round; `ConfigError` if so many sites cannot be planned for."""
        sizes = planned_sizes(self.setting, self.parameters, sites)
        up = sizes.up_nbytes
        ratio = up / self.measured.up_nbytes
        return Cost(
            up_nbytes=up,
            down_nbytes=sizes.down_nbytes,
            encrypt_seconds=ratio * self.measured.encrypt_seconds,
            add_seconds=ratio * self.measured.add_seconds,
            finish_seconds=ratio * self.measured.finish_seconds,
            decrypt_seconds=ratio * self.measured.decrypt_seconds + (sites - ADDED) * up * self.stream_seconds,
        )


@lru_cache(maxsize=1024)
def planned_sizes(setting: str, parameters: int, sites: int) -> Sizes:
    """Return the exact sizes of a round for which so many sites are planned, all of whom send."""
    config = SETTINGS[setting].config(sites)
    return sizes_of(config, Layout.of(empty_model(parameters), config), sites)
