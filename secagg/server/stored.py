"""What lies in a run folder, held against the kit that shall be served on it. Nothing is written or locked here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import secagg

from ..errors import ConfigError, FormatError, KeyFileError, SignatureError, VerificationError
from ..storage.files import os_errors
from .run_folder import PROJECT_FILE, stored

_REMEDY = "restore the run folder from a backup, or use another"


def check_stored(folder: Path, key: secagg.ServerKey, project: secagg.Project | None) -> None:
    """Refuse a run folder that a server with this kit would refuse at its start.

    Parameters
    ----------
    folder : Path
        Run folder; one that does not exist holds nothing that could be refused.
    key : secagg.ServerKey
        The server's half of the HE key.
    project : secagg.Project or None
        The server's manifest; None, or one that was not read from its signed form: there is nothing to compare.

    Raises
    ------
    ConfigError
        If the folder cannot be read; if it was served under a later manifest or that of another federation, or an
        aggregate was made under another key of this epoch or under a later one, or scales were. Those of earlier epochs
        are of the same federation before its key was rotated.
    FormatError
        If an aggregate is damaged, or scales are.
    """
    for _ in stored_sums(folder, key, project):
        pass


def stored_sums(folder: Path, key: secagg.ServerKey, project: secagg.Project | None) -> Iterator[secagg.Update]:
    """Yield aggregates and scales, each open until the next: by rounds, the scales of a round before its aggregate.

    Errors as of `check_stored`.
    """
    with os_errors(ConfigError, f"cannot use the run folder {folder}"):
        served = served_project(folder) if project is not None and project.signed else None
        files = [(item, kind) for kind in ("scales", "aggregate") for item in stored(folder, kind).items()]
    if project is not None and served is not None:
        _check_successor(folder / PROJECT_FILE, served, project)  # first: its epoch says nothing of another federation
    for (round, path), kind in sorted(files, key=lambda file: file[0][0]):  # stable
        try:
            with secagg.Update.open(path) as summed:
                _check_sum(path, summed.header, kind, round, key)
                yield summed
        except FormatError as error:
            raise type(error)(f"{path}: {error}; {_REMEDY}") from error


def served_project(folder: Path) -> secagg.Project | None:
    """Return the manifest under which a run folder was served last; None if there is none.

    Raises
    ------
    ConfigError
        If it is damaged.
    """
    path = folder / PROJECT_FILE
    if not path.exists():
        return None
    try:
        return secagg.Project.load(path)
    except KeyFileError as error:
        raise ConfigError(f"{error}; {_REMEDY}") from error


def _check_successor(path: Path, served: secagg.Project, project: secagg.Project) -> None:
    try:
        served.successor(project.signed)
    except SignatureError as error:
        raise ConfigError(
            f"{path}, manifest of project {served.name}, is of another federation than this kit, of project "
            f"{project.name}; use another run folder"
        ) from error
    except VerificationError as error:
        if project.serial < served.serial:
            raise ConfigError(
                f"{path.parent} was served under manifest {served.serial}, this kit has {project.serial}: unpack the "
                "newest kit"
            ) from error
        raise ConfigError(
            f"{path.parent} was served under another manifest {served.serial} than this kit's: {error}"
        ) from error


def _check_sum(path: Path, header: secagg.Header, kind: str, round: int, key: secagg.ServerKey) -> None:
    if (header.kind, header.round) != (kind, round):
        raise ConfigError(f"{path} is not the {kind} of round {round}; {_REMEDY}")
    if header.epoch > key.epoch:
        raise ConfigError(f"{path} is of epoch {header.epoch}, this key of epoch {key.epoch}: use the newest kit")
    if header.epoch == key.epoch and header.key != key.fingerprint:
        raise ConfigError(f"{path} was made under another key; use another run folder")
