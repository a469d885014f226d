"""What a benchmark leaves: a JSON file that says what was measured, by which command, on what."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import ConfigError, FormatError, StorageError, show
from ..storage.files import os_errors, replace_file
from .machine import machine


@dataclass(frozen=True)
class Results:
    """One benchmark's results.

    Parameters
    ----------
    kind : str
        Which benchmark: ``"peers"``, ``"clara"``, ``"growth"``, ``"leakage"``, ``"model"``, ``"bench"``.
    command : str
        What repeats it, as one types it.
    data : mapping
        What was measured: numbers, texts, lists and mappings of them. Sizes are in bytes and times in seconds, and
        their names say so (``nbytes``, ``seconds``).
    date : str
        When it was measured: ISO 8601, UTC.
    machine : mapping
        As of `machine`.
    """

    kind: str
    command: str
    data: Mapping[str, Any]
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    machine: Mapping[str, Any] = field(default_factory=machine)

    def save(self, path: Path) -> None:
        """Write the file, or replace it as a whole; `StorageError` if that cannot be."""
        with replace_file(path) as file:
            file.write((json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n").encode())

    @classmethod
    def load(cls, path: Path, kind: str | None = None) -> Results:
        """Read a file.

        Parameters
        ----------
        path : Path
            As `save` has written it.
        kind : str, optional
            What it must be of.

        Raises
        ------
        FormatError
            If it cannot be read, is no such file, or is of another kind.
        """
        with os_errors(FormatError, f"cannot read {str(path)!r}"):
            text = path.read_text(encoding="utf-8")
        try:
            found = cls(**json.loads(text))
        except ValueError as error:
            raise FormatError(f"{path} is not a file of results: {error}") from error
        except TypeError as error:
            raise FormatError(f"{path} is not a file of results: kind, command and data are missing") from error
        if kind is not None and found.kind != kind:
            raise FormatError(f"{path} holds results of {show(found.kind)}, not of {kind!r}")
        return found


def check_out(path: Path, kind: str) -> None:
    """Make the folder of a file of results, and refuse what must not be replaced: better known before than after.

    Parameters
    ----------
    path : Path
        Where results are to go.
    kind : str
        Of which kind they will be.

    Raises
    ------
    ConfigError
        If it is a folder, or a file that holds no results of this kind: those are replaced, others never.
    StorageError
        If its folder cannot be made, or nothing can be written there.
    """
    make_folder(path)
    if path.is_dir():
        raise ConfigError(f"--out is the folder {path}; name a file")
    if not path.exists():
        return
    try:
        Results.load(path, kind)
    except FormatError as error:
        raise ConfigError(f"--out must not replace {path}, which holds no results of {kind!r}: name another") from error


def make_folder(path: Path) -> None:
    """Make the folder of a file; `StorageError` if that cannot be, or nothing can be written there."""
    with os_errors(StorageError, f"cannot make the folder of {str(path)!r}"):
        path.parent.mkdir(parents=True, exist_ok=True)
    with os_errors(StorageError, f"cannot write {str(path)!r}"), tempfile.TemporaryFile(dir=path.parent):
        pass
