"""What ``secagg add-site``, ``remove-site`` and ``rotate`` share: options, and what they print."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import show_time
from ..trust.project import Project
from ..ui.progress import progress
from . import passphrases
from .provision import print_kits, print_warnings

if TYPE_CHECKING:
    from ..setup.kits import Change


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what the three commands have in common."""
    parser.add_argument("kits", type=Path, help="folder that `secagg provision` made, with `authority` in it")
    passphrases.add_option(parser, "one is generated for each kit")


def change(options: argparse.Namespace, what: str, make: Change) -> Project:
    """Carry out a change, and say which kits are to be handed out.

    Parameters
    ----------
    options : argparse.Namespace
        With those of `add_options`.
    what : str
        What is done, for the progress.
    make : callable
        Does it.
    """
    from ..setup import change_kits

    passphrase = passphrases.given_for_new_kits(options.passphrase_file)
    made = change_kits(options.kits, what, make, passphrase, progress)
    project = made.project
    print(f"project {project.name}, serial {project.serial}, epoch {project.epoch}, until {show_time(project.expires)}")
    print_kits(made)
    print_warnings(made)
    return project
