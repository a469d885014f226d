"""``secagg provision``: everything that the parties of a federation need."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import show_time
from ..trust.kit import active_sites
from ..trust.kit_files import SERVER
from ..ui.progress import progress
from . import passphrases

if TYPE_CHECKING:
    from ..setup import NewKits

EXAMPLE = """secagg provision project.yaml --out kits

  project.yaml:
    project: brain-tumours
    hosts: [fl.example.org]                # under which sites reach the server
    sites: [site-1, site-2, site-3]
    days: 365                              # validity of kits
    initial: model.pt                      # optional: the model that all begin from; `model:` if only its shapes count
    task: {patch: [96, 96, 96]}            # optional: what sites agree on, see docs/own-data.md
    storage: [bucket.example.org]          # optional: where updates may lie, see `secagg serve --bucket`
    he: {preset: exact}                    # from here on a configuration, as `secagg plan` writes it
    aggregation: {min_clients: 3, max_clients: 10}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Make keys, certificates and a signed manifest, and pack an encrypted kit for the server and each site."""
    parser.add_argument("project", type=Path, help="what the federation is to be (YAML, below)")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder for the kits; must be new")
    passphrases.add_option(parser, "one is generated for each kit")


def run(options: argparse.Namespace) -> None:
    """Make the kits and say what to do with them."""
    from ..setup import ProjectFile, provision

    file = ProjectFile.load(options.project)
    passphrase = passphrases.given_for_new_kits(options.passphrase_file)
    made = provision(file, options.out, passphrase, progress)
    print(f"project {made.project.name}, serial {made.project.serial}, valid until {show_time(made.project.expires)}")
    print_kits(made)
    print(
        f"{made.authority} issues kits later and holds every HE key: keep it, offline and backed up, "
        "off the server and the sites"
    )
    if not file.hosts:
        print("warning: hosts is empty: sites can reach this server on its own machine alone, as localhost")
    print_warnings(made)


def print_kits(made: NewKits) -> None:
    """Say where kits are and what their owners do with them."""
    for kit in made.files:
        secret = "no HE secret" if kit.stem == SERVER else "holds the HE key: keep it from the server"
        print(f"  {kit}  ({secret})")
    where = f"in {made.passphrases}" if made.passphrases else "the one that was given"
    print(f"passphrases: {where}; send them on another way than the kits, which are opened by `secagg unpack FILE`")


def print_warnings(made: NewKits) -> None:
    """Say if a project cannot work as it is."""
    least, count = made.project.config.aggregation.min_clients, len(active_sites(made.project))
    if count < least:
        print(f"warning: {count} sites take part, aggregation.min_clients is {least}: no round can succeed; add sites")
