"""The folder of a federation's kits: made, and changed when sites come or go or the key is rotated; all or nothing.

===================  ===================================================================
``authority/``       what issues kits later: see `secagg.setup.provisioner`
``<party>.kit``      an encrypted kit for each party: see `secagg.setup.packing`
``passphrases.txt``  those that were generated for kits: see `secagg.setup.passphrases`
===================  ===================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ..errors import KeyFileError
from ..storage.staging import change_folder, new_folder
from ..trust.kit import active_sites
from ..trust.kit_files import PROJECT_FILE, SERVER
from ..trust.project import Project
from .packing import SUFFIX, pack
from .passphrases import PASSPHRASES_FILE, check_passphrase, generate, note
from .progress import Progress, silent
from .project_file import ProjectFile
from .provisioner import Provisioner

AUTHORITY = "authority"

#: Makes kits, given the provisioner, a folder for what changes of its folder, and one for the kits.
Change = Callable[[Provisioner, Path, Path], Project]


@dataclass(frozen=True)
class NewKits:
    """Kits that are to be handed out.

    Parameters
    ----------
    project : Project
        The manifest in them.
    files : tuple of Path
        The encrypted kits, the server's first.
    authority : Path
        The provisioner's folder.
    passphrases : Path or None
        The list of the passphrases that were generated; None if one was given for all.
    """

    project: Project
    files: tuple[Path, ...]
    authority: Path
    passphrases: Path | None


def provision(file: ProjectFile, folder: Path, passphrase: str | None = None, progress: Progress = silent) -> NewKits:
    """Make a federation: the provisioner's folder, and an encrypted kit for the server and each site.

    Parameters
    ----------
    file : ProjectFile
        What it is to be.
    folder : Path
        New folder for all of it.
    passphrase : str, optional
        That of all kits. Without it each gets its own, which a list beside them tells.
    progress : callable, optional
        Shows how far the work is.

    Raises
    ------
    ConfigError
        If the folder exists, or the passphrase is too short.
    StorageError
        If the folder cannot be written.
    """
    if passphrase is not None:
        check_passphrase(passphrase)
    with new_folder(folder) as made, TemporaryDirectory(prefix=".kits-", dir=made) as room:
        with progress(f"make keys and certificates of {len(file.sites)} sites and the server"):
            project = Provisioner.create(file, made / AUTHORITY, Path(room)).project
        names = _parties(project, Path(room))
        generated = _pack(Path(room), names, made, passphrase, progress)
        note(made / PASSPHRASES_FILE, made / PASSPHRASES_FILE, generated, ())
    return _new_kits(project, folder, names, passphrase)


def change_kits(
    folder: Path, what: str, change: Change, passphrase: str | None = None, progress: Progress = silent
) -> NewKits:
    """Change a federation: the provisioner's folder, and the kits that the change makes anew.

    Kits of sites that it revokes go. The others stay, with their passphrases.

    Parameters
    ----------
    folder : Path
        What `provision` made.
    what : str
        What is done, in words for `progress`.
    change : callable
        Does it, by `Provisioner.add`, `remove` or `rotate`.
    passphrase, progress
        As of `provision`.

    Raises
    ------
    KeyFileError
        If the folder is not what `provision` made, or a file of the provisioner is missing or damaged.
    ConfigError
        If the passphrase is too short.
    StorageError
        If the folder cannot be written, or another command is changing it.
    """
    if not (folder / AUTHORITY / PROJECT_FILE).is_file():
        raise KeyFileError(f"{folder} has no {AUTHORITY}/{PROJECT_FILE}; name the folder that `secagg provision` made")
    if passphrase is not None:
        check_passphrase(passphrase)
    with change_folder(folder) as stage:
        provisioner = Provisioner.load(folder / AUTHORITY)
        changed, room = stage.folder / AUTHORITY, stage.aside
        changed.mkdir(0o700)
        with progress(what):
            project = change(provisioner, changed, room)
        names = _parties(project, room)
        kept = {SERVER, *(site.name for site in active_sites(project))}.difference(names)
        generated = _pack(room, names, stage.folder, passphrase, progress)
        listed = stage.folder / PASSPHRASES_FILE
        note(folder / PASSPHRASES_FILE, listed, generated, {_file(name) for name in kept})
        if not listed.exists():
            stage.remove(PASSPHRASES_FILE)
        for site in project.sites:
            if site.revoked:
                stage.remove(_file(site.name))
    return _new_kits(project, folder, names, passphrase)


def _pack(room: Path, names: list[str], out: Path, passphrase: str | None, progress: Progress) -> dict[str, str]:
    """Encrypt the kits of these parties; return the passphrases that were generated, by the names of files."""
    generated: dict[str, str] = {}
    with progress(f"encrypt {len(names)} kit{'s' if len(names) > 1 else ''}, one or two seconds each") as report:
        for number, name in enumerate(names):
            report(number, len(names))
            own = passphrase
            if own is None:
                own = generated[_file(name)] = generate()
            pack(room / name, out / _file(name), own)
        report(len(names), len(names))
    return generated


def _parties(project: Project, room: Path) -> list[str]:
    """Return whose kits are in a folder, the server first."""
    return [name for name in (SERVER, *(site.name for site in project.sites)) if (room / name).is_dir()]


def _file(name: str) -> str:
    return f"{name}{SUFFIX}"


def _new_kits(project: Project, folder: Path, names: list[str], passphrase: str | None) -> NewKits:
    listed = folder / PASSPHRASES_FILE if passphrase is None else None
    return NewKits(project, tuple(folder / _file(name) for name in names), folder / AUTHORITY, listed)
