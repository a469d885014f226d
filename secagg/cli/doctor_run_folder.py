"""What ``secagg doctor`` says of a server's run folder: whether `secagg serve` could work in it. Nothing is written."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import ConfigError
from ..server.stored import check_stored
from ..trust.kit import ServerKit


def check_run_folder(folder: Path, kit: ServerKit) -> str:
    """Look at the run folder as `secagg serve` would at its start; one where a server works is fine.

    Raises
    ------
    ConfigError
        If it cannot be used or made by this user, or holds what a server with this kit refuses.
    FormatError
        If an aggregate in it is damaged.
    """
    if not os.path.lexists(folder):
        place = next(path for path in folder.absolute().parents if path.exists())
        if not place.is_dir():
            raise ConfigError(f"{folder} cannot be made: {place} is a file")
        _check_access(place, f"{folder} cannot be made")
        return f"{folder} does not exist yet; `secagg serve` makes it"
    if not folder.is_dir():
        raise ConfigError(f"{folder} is a file; give a folder")
    for path in (folder, folder / "spool", folder / "lock"):
        if path.exists():
            _check_access(path, f"{folder} cannot be used")
    check_stored(folder, kit.key, kit.project)
    return f"{folder} can be written, and fits this kit"


def _check_access(path: Path, what: str) -> None:
    mode = os.R_OK | os.W_OK | (os.X_OK if path.is_dir() else 0)
    if not os.access(path, mode):
        raise ConfigError(
            f"{what}: this user may not write to {path}; try as the user that `secagg serve` runs as, or change its "
            "owner"
        )
