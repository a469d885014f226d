"""Own data in the demo: the cases of one folder, shared out over the sites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..setup.progress import Progress
from ..ui.units import show_count

#: All sites and their networks share this machine.
_LARGEST_EDGE = 48
_FILTERS = 8

#: One of so many cases is held out, or of so many as a site has.
_FOLDS = 5


@dataclass(frozen=True)
class OwnData:
    """A folder in the shape of the Medical Segmentation Decathlon, and what its sites agree on. Make it with `plan`.

    Parameters
    ----------
    folder : Path
        The folder.
    block : mapping of str to object
        The ``task:`` block of the manifest.
    metrics : list of str
        What sites measure.
    cases, sites : int
        How many there are.
    """

    folder: Path
    block: Mapping[str, Any]
    metrics: list[str]
    cases: int
    sites: int

    @classmethod
    def plan(cls, folder: Path, sites: int, seed: int, progress: Progress) -> OwnData:
        """Read the data, and plan spacing and patch.

        Raises
        ------
        ConfigError
            If a file is not as it must be, or there are fewer than two cases for each site.
        """
        from ..integrations.monai.decathlon import Decathlon
        from ..integrations.monai.planning import propose

        data = Decathlon.load(folder)
        count = len(data.files)
        if count < 2 * sites:
            raise ConfigError(
                f"{folder} has {show_count(count, 'case')}, too few for {sites} sites: each needs two, one to train "
                f"with and one to hold out; use --sites {count // 2}"
                if count >= 4
                else f"{folder} has {show_count(count, 'case')}; two sites need two each"
            )
        with progress(f"read {show_count(count, 'label')} of {folder}") as report:
            cases = data.cases(report)
        with progress("plan spacing, patch and window") as report:
            settings = propose(data, cases, report, largest=_LARGEST_EDGE)
        settings = replace(settings, filters=_FILTERS, seed=seed)
        return cls(folder.absolute(), settings.block, settings.metrics, count, sites)

    @property
    def training(self) -> list[str]:
        """Options of ``secagg site`` with which each site trains on its part."""
        return ["--data", str(self.folder), "--fold", f"1/{min(_FOLDS, self.cases // self.sites)}"]

    @property
    def most_cases(self) -> int:
        """No site has more."""
        return -(-self.cases // self.sites)
