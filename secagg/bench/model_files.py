"""What a comparison leaves: its results as JSON and its plot as PNG, side by side."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from ..errors import BackendUnavailableError, ConfigError, FormatError
from ..storage.files import replace_file
from .model import CostRow, Model
from .report.backends import size_chart
from .results import Results, make_folder

KIND = "model"

#: Where `secagg bench report` looks for it, too.
FOLDER = Path("bench")

_JSON = ".json"


class Files(NamedTuple):
    """Where they are."""

    results: Path
    plot: Path

    @classmethod
    def of(cls, model: Path, out: Path | None) -> Files:
        """Return where the results of a model go, without writing anything.

        Parameters
        ----------
        model : Path
            The model's file.
        out : Path or None
            A file, ``.json``; or a folder, which is made; by default `FOLDER`.

        Raises
        ------
        ConfigError
            If files are there which are no results of this model: those are replaced, others never.
        BackendUnavailableError
            If the library is not installed that plots.
        """
        if find_spec("matplotlib") is None:
            raise BackendUnavailableError("the plot needs the library matplotlib: pip install 'secagg[bench]'")
        results = out if out is not None and out.suffix == _JSON else (out or FOLDER) / f"{model.stem}{_JSON}"
        files = cls(results, results.with_suffix(".png"))
        for path in files:
            if path.exists() and not files._are_of(model.stem):
                raise ConfigError(
                    f"{path} exists, and is no result of a model called {model.stem}: name other files with --out"
                )
        return files

    def _are_of(self, name: str) -> bool:
        try:
            facts = Results.load(self.results, KIND).data["model"]
        except (FormatError, KeyError):
            return False
        return isinstance(facts, dict) and facts.get("name") == name

    def save(self, model: Model, sites: int, rows: Sequence[CostRow], command: Sequence[str]) -> None:
        """Write both; `StorageError` if that cannot be.

        Parameters
        ----------
        model : Model
            What was encrypted.
        sites : int
            For how many sites.
        rows : sequence of CostRow
            What it has cost.
        command : sequence of str
            What repeats it.
        """
        data = {"model": model.facts(), "sites": sites, "rows": [row.to_dict() for row in rows]}
        results = Results(KIND, shlex.join(command), data)
        make_folder(self.plot)
        with replace_file(self.plot) as file:
            file.write(size_chart(self.results.stem, results).png())
        results.save(self.results)
