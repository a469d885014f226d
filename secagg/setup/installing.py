"""A kit's files in the folder of its party, also over the kit that they replace."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

from ..errors import KeyFileError, SignatureError, VerificationError
from ..storage.staging import change_folder, is_committed, is_empty, new_folder
from ..trust.identity import Identity
from ..trust.kit import ServerKit, SiteKit, load_client_key, load_kit
from ..trust.kit_files import (
    CLIENT_KEY_FILE,
    IDENTITY_FILE,
    LOCK_FILE,
    OLD_FILES,
    PROJECT_FILE,
    SERVER_KEY_FILE,
    find_file,
    locked,
    of_epoch,
    older_files,
)
from ..trust.project import Project
from .packing import write


def install(files: Mapping[str, bytes], folder: Path) -> SiteKit | ServerKit:
    """Write the files of a kit into a folder, all or none of them.

    Parameters
    ----------
    files : mapping of str to bytes
        Names to contents, all of a kit, as `secagg.setup.unpack` returns them.
    folder : Path
        A new or empty folder, or one with a kit of the same party that is not newer. What else lies there stays. The
        HE key of an earlier epoch stays as ``he-client-<epoch>.key``, with the manifest and the signing key of that
        epoch; what an earlier release has named otherwise is renamed.

    Returns
    -------
    SiteKit or ServerKit
        The kit, as it lies there now.

    Raises
    ------
    ConfigError, KeyFileError, IdentityError
        If the parts of the kit do not belong together.
    KeyFileError
        If `folder` is something else, or holds a newer kit or one of another party or project.
    ConfigError
        If `secagg site` is at work there.
    StorageError
        If the folder cannot be written, or another command is changing it.
    """
    if not folder.exists():
        with new_folder(folder) as made:
            write(files, made)
            load_kit(made)
    elif folder.is_dir() and ((folder / PROJECT_FILE).is_file() or is_committed(folder) or is_empty(folder)):
        _replace(files, folder)
    else:
        raise KeyFileError(f"{folder} exists, and is not a kit's folder; name another with --out")
    return load_kit(folder)


def _replace(files: Mapping[str, bytes], folder: Path) -> None:
    at_work = locked(folder) if (folder / LOCK_FILE).exists() else nullcontext()
    with at_work, change_folder(folder) as stage:
        write(files, stage.folder)
        new = load_kit(stage.folder)
        if not (folder / PROJECT_FILE).is_file():
            return
        old = _check_successor(new, (stage.folder / PROJECT_FILE).read_bytes(), folder)
        older = older_files(folder, CLIENT_KEY_FILE if isinstance(new, SiteKit) else SERVER_KEY_FILE)
        kept = {name: path for name, path in older.items() if name not in files and not (folder / name).exists()}
        if isinstance(new, SiteKit) and old.epoch != new.project.epoch:
            load_client_key(find_file(folder, CLIENT_KEY_FILE), old)
            kept |= {of_epoch(name, old.epoch): find_file(folder, name) for name in OLD_FILES}
        write({name: path.read_bytes() for name, path in kept.items()}, stage.folder)
        for name, path in older.items():
            if name in files or name in kept:
                stage.remove(path.name)


def _check_successor(new: SiteKit | ServerKit, manifest: bytes, folder: Path) -> Project:
    """Return the manifest that lies in a folder, or raise `KeyFileError` if `new` may not take its kit's place."""
    other = "name another folder with --out"
    try:
        old, identity = Project.load(folder / PROJECT_FILE), Identity.load(folder / IDENTITY_FILE)
    except KeyFileError as error:
        raise KeyFileError(f"{folder} exists, and holds no kit that could be replaced ({error}); {other}") from error
    owner = next((party.name for party in (old.server, *old.sites) if party.public == identity.public), None)
    if owner != new.name:
        raise KeyFileError(f"{folder} holds a kit of {owner or 'nobody'}, this one is of {new.name}; {other}")
    try:
        old.successor(manifest)
    except SignatureError as error:
        raise KeyFileError(f"{folder} holds a kit of project {old.name} of another provisioner; {other}") from error
    except VerificationError as error:
        if new.project.serial < old.serial:
            raise KeyFileError(
                f"{folder} holds a newer kit, of serial {old.serial}, than this one, of serial {new.project.serial}; "
                "ask the provisioner for the newest"
            ) from error
        raise KeyFileError(f"{folder} holds a kit that this one cannot replace: {error}") from error
    return old
