"""What ``secagg add-site``, ``remove-site`` and ``rotate`` share: a change of the provisioner's folder and its kits."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import KeyFileError, show_time
from ..setup.packing import SUFFIX
from ..storage.staging import change_folder
from ..trust.kit import PROJECT_FILE, SERVER, active_sites
from ..trust.project import Project
from ..ui.progress import progress
from . import passphrases
from .passphrases import PASSPHRASES_FILE
from .provision import AUTHORITY, pack_kits, print_kits, print_warnings

if TYPE_CHECKING:
    from ..setup.provisioner import Provisioner

#: Makes kits, given the provisioner, a folder for what changes of its folder, and one for the kits.
Change = Callable[["Provisioner", Path, Path], Project]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what the three commands have in common."""
    parser.add_argument("kits", type=Path, help="folder that `secagg provision` made, with `authority` in it")
    passphrases.add_option(parser, "one is generated for each kit")


def change(options: argparse.Namespace, what: str, make: Change) -> Project:
    """Carry out a change, all or nothing, and say which kits are to be handed out.

    Parameters
    ----------
    options : argparse.Namespace
        With those of `add_options`.
    what : str
        What is done, for the progress.
    make : callable
        Does it.
    """
    from ..setup.provisioner import Provisioner

    folder: Path = options.kits
    if not (folder / AUTHORITY / PROJECT_FILE).is_file():
        raise KeyFileError(f"{folder} has no {AUTHORITY}/{PROJECT_FILE}; name the folder that `secagg provision` made")
    passphrase = passphrases.given_for_new_kits(options.passphrase_file)
    with change_folder(folder) as stage:
        provisioner = Provisioner.load(folder / AUTHORITY)
        changed, kits = stage.folder / AUTHORITY, stage.aside
        changed.mkdir(0o700)
        with progress(what):
            project = make(provisioner, changed, kits)
        made = {kit.name for kit in kits.iterdir()}
        kept = {SERVER, *(site.name for site in active_sites(project))} - made
        pack_kits(kits, stage.folder, folder / PASSPHRASES_FILE, passphrase, kept)
        if not (stage.folder / PASSPHRASES_FILE).exists():
            stage.remove(PASSPHRASES_FILE)
        for site in project.sites:
            if site.revoked:
                stage.remove(f"{site.name}{SUFFIX}")
    print(f"project {project.name}, serial {project.serial}, epoch {project.epoch}, until {show_time(project.expires)}")
    print_kits(folder, sorted(made, key=lambda name: (name != SERVER, name)), passphrase)
    print_warnings(project)
    return project
