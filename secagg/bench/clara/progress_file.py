"""How far a run is: a folder beside its output, from which the same command goes on."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ConfigError, FormatError, StorageError
from ...storage.files import os_errors, replace_file
from ...storage.locks import locked_folder
from .cell import Cell
from .federations import State

_PROGRESS = "progress.json"


@dataclass(frozen=True)
class Options:
    """What is measured; all of it must be the same for a run to go on.

    Parameters
    ----------
    sites : tuple of int
        Numbers of sites, one cell each.
    rounds : int
        Of each cell.
    seeds : int
        How many there are of the pairs of the smallest number of sites; other numbers have the first one only.
    many : int
        Sites of the round without training; 0 for none.
    network : str
        What is trained.
    """

    sites: tuple[int, ...] = (2, 4, 8)
    rounds: int = 4
    seeds: int = 5
    many: int = 30
    network: str = "segresnet"

    def command(self) -> str:
        """Return the command that has these options."""
        sites = " ".join(map(str, self.sites))
        return (
            f"secagg bench clara --sites {sites} --rounds {self.rounds} --seeds {self.seeds} --many {self.many} "
            f"--network {self.network}"
        )


class WorkingFolder:
    """What a run has done: the cells that are finished, the rounds of the one that is not, and its latest models.

    ``progress.json`` is replaced as a whole, when the models that it names are on the disk: whatever ends the process,
    each round is in it once, or is done again. Use `open`.
    """

    def __init__(self, folder: Path, options: Options) -> None:
        self._folder = folder
        self._progress: dict[str, Any] = {"options": _plain(options), "cells": [], "many": []}
        if (folder / _PROGRESS).exists():
            found = _read(folder / _PROGRESS)
            check_options(found["options"], _plain(options), folder)
            self._progress = found
        self.runs = folder / "runs"
        self.clear()  # of a process that was killed

    @classmethod
    @contextmanager
    def open(cls, folder: Path, options: Options) -> Iterator[WorkingFolder]:
        """Make the folder, or go on with it, and keep others away meanwhile.

        Raises
        ------
        ConfigError
            If the run in it has other options, or another process is at work on it.
        FormatError, StorageError
            If it is damaged; if it cannot be written.
        """
        with os_errors(StorageError, f"cannot make {folder}"):
            folder.mkdir(mode=0o700, exist_ok=True)
        with locked_folder(folder, ConfigError(f"another process is at work on {folder}: wait for it, or end it")):
            work = cls(folder, options)
            try:
                yield work
            finally:
                work.clear()

    @property
    def cells(self) -> list[dict[str, Any]]:
        """What was measured: cells with their rows, the last perhaps not whole."""
        return list(self._progress["cells"])

    @property
    def many(self) -> list[dict[str, Any]]:
        """Rows of the round of many sites."""
        return list(self._progress["many"])

    def rounds_done(self, cell: Cell) -> int:
        """Return how many rounds of a cell are done."""
        rows = self._entry(cell)["rows"]
        return len(rows) // len(cell.settings)

    def models(self, cell: Cell) -> dict[str, State]:
        """Return the models after these rounds, by setting; none if none was done."""
        name = self._entry(cell).get("models")
        if name is None:
            return {}
        models: dict[str, dict[str, Any]] = {setting: {} for setting in cell.settings}
        try:
            with (
                os_errors(FormatError, f"cannot read {self._folder / name}"),
                (self._folder / name).open("rb") as file,
                np.load(file, allow_pickle=False) as arrays,
            ):
                for key in arrays.files:
                    setting, _, tensor = key.partition("/")
                    models[setting][tensor] = arrays[key]
        except (ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
            raise FormatError(f"{self._folder / name} is damaged: remove {self._folder} to begin again") from error
        return dict(models)

    def add_round(self, cell: Cell, rows: list[dict[str, Any]], models: Mapping[str, State], last: bool) -> None:
        """Add a round of a cell, and the models after it; after the last one nobody needs them."""
        entry = self._entry(cell)
        before, name = entry.pop("models", None), f"models-{rows[0]['round']}.npz"
        if not last:
            arrays = {
                f"{setting}/{tensor}": value for setting, state in models.items() for tensor, value in state.items()
            }
            with replace_file(self._folder / name, 0o600) as file:
                np.savez(file, allow_pickle=False, **arrays)
            entry["models"] = name
        cells = [other for other in self._progress["cells"] if not _is(other, cell)]
        self._save(cells=[*cells, entry | {"rows": [*entry["rows"], *rows]}])
        if before is not None:
            (self._folder / before).unlink(missing_ok=True)

    def add_break(self, cell: Cell) -> None:
        """Note that a cell goes on in another process."""
        entry = self._entry(cell)
        cells = [other for other in self._progress["cells"] if not _is(other, cell)]
        resumed = [*entry.get("resumed", []), self.rounds_done(cell)]
        self._save(cells=[*cells, entry | {"resumed": resumed}])

    def add_many(self, row: dict[str, Any]) -> None:
        """Add a setting of the round of many sites."""
        self._save(many=[*self._progress["many"], row])

    def clear(self) -> None:
        """Remove what federations have left in `runs`: their keys, too."""
        shutil.rmtree(self.runs, ignore_errors=True)

    def remove(self) -> None:
        """Remove the folder, when all is done."""
        shutil.rmtree(self._folder)

    def _entry(self, cell: Cell) -> dict[str, Any]:
        known = (dict(entry) for entry in self._progress["cells"] if _is(entry, cell))
        return next(known, {"sites": cell.sites, "seed": cell.seed, "rows": []})

    def _save(self, **changes: Any) -> None:
        progress = self._progress | changes
        with replace_file(self._folder / _PROGRESS, 0o600) as file:
            file.write(json.dumps(progress).encode())
        self._progress = progress


def check_options(found: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> None:
    """Raise `ConfigError` if a run was begun with other options; it names them."""
    others = [name for name in wanted if found.get(name) != wanted[name]]
    if others:
        theirs, ours = (
            " ".join(f"--{name} {_show(options.get(name))}" for name in others) for options in (found, wanted)
        )
        raise ConfigError(
            f"{folder} holds a run with {theirs}, this one has {ours}: give the same options to go on, remove the "
            "folder to begin again, or name another --out"
        )


def _plain(options: Options) -> dict[str, Any]:
    return asdict(options) | {"sites": list(options.sites)}


def _show(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _is(entry: Mapping[str, Any], cell: Cell) -> bool:
    return (entry["sites"], entry["seed"]) == (cell.sites, cell.seed)


def _read(path: Path) -> dict[str, Any]:
    with os_errors(FormatError, f"cannot read {path}"):
        text = path.read_text(encoding="utf-8")
    try:
        found = json.loads(text)
        if {"options", "cells", "many"} == set(found):
            return dict(found)
    except (ValueError, TypeError):
        pass
    raise FormatError(f"{path} is not the progress of a run: remove {path.parent} to begin again")
