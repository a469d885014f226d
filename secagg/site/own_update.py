"""The update of a round in a site's folder, with what it leaves to carry: never one that is not the other's.

Beside them lie the tensors that are the site's own, as training left them last: of this update, or of one that was not
finished.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import MismatchError, RoundMismatchError, StateError, StorageError
from ..storage.files import os_errors, replace_file, synchronise
from ..wire.carry import StoredCarry, carries
from ..wire.update import Update
from .folder import CARRY_FILE, NEW_UPDATE_FILE, OWN_FILE, UPDATE_FILE
from .global_model import GlobalModel
from .trained import Trained


def write_update(folder: Path, model: GlobalModel, trained: Trained, scales: Update | None) -> None:
    """Encrypt what has been trained, as the update in a site's folder; see `GlobalModel.encrypt`.

    Whenever this is interrupted, the update in the folder is the one that left what is to be carried, or there is none:
    then the round is encrypted again, and begins where this one began.
    """
    new, update = folder / NEW_UPDATE_FILE, folder / UPDATE_FILE
    model.encrypt_to(new, trained.local, trained.weight, scales, trained.metrics)
    with os_errors(StorageError, f"cannot write {os.fspath(update)!r}"):
        with replace_file(folder / OWN_FILE, 0o600) as file:
            file.write(model.own_to_bytes())
        if model.site.carries:
            update.unlink(missing_ok=True)
            synchronise(folder)
            with replace_file(folder / CARRY_FILE, 0o600) as file:
                file.write(model.site.carry())
        os.replace(new, update)
        synchronise(folder)


def keep_carry(folder: Path, model: GlobalModel) -> None:
    """Write what is to be carried, if it has changed: an update that is in no sum leaves what it found."""
    path, blob = folder / CARRY_FILE, model.site.carry()
    with os_errors(StorageError, f"cannot write {os.fspath(path)!r}"):
        if blob and path.exists() and path.read_bytes() != blob:
            with replace_file(path, 0o600) as file:
                file.write(blob)


def restore_own(folder: Path, model: GlobalModel) -> None:
    """Let a model go on with the site's own tensors as an earlier process has left them, if it did.

    Raises
    ------
    SecAggError
        If they cannot be used. Then they are what the model has.
    """
    path = folder / OWN_FILE
    with os_errors(StorageError, "it cannot be read"):
        blob = path.read_bytes() if path.exists() else b""
    if blob:
        model.own_from_bytes(blob)


def restore_carry(folder: Path, model: GlobalModel) -> None:
    """Let a model's client go on with what an earlier process has left to carry, if it did.

    Raises
    ------
    SecAggError
        If it cannot be used. Then the client has nothing to carry.
    """
    site, path = model.site, folder / CARRY_FILE
    site.restore_carry(b"")
    if not carries(site.config):
        return
    with os_errors(StorageError, "it cannot be read"):
        blob = path.read_bytes() if path.exists() else b""
    if blob:
        carry = StoredCarry.from_bytes(blob).carry
        if carry.round > model.round:
            raise RoundMismatchError(f"it is of round {carry.round}, the global model of round {model.round}")
        if carry.model != model.layout.fingerprint:
            raise MismatchError("it is of another model")
        site.restore_carry(blob)
    elif (folder / UPDATE_FILE).exists():  # it has left something
        raise StateError("the file is missing")
