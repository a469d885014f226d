"""``secagg provision``: everything that the parties of a federation need."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from ..errors import show_time
from ..setup.packing import SUFFIX, pack
from ..setup.project_file import ProjectFile
from ..storage.staging import new_folder
from ..trust.kit import SERVER, active_sites
from ..trust.project import Project
from ..ui.progress import progress
from ..ui.units import show_count
from . import passphrases
from .passphrases import PASSPHRASES_FILE

EXAMPLE = """secagg provision project.yaml --out kits

  project.yaml:
    project: brain-tumours
    hosts: [fl.example.org]                # under which sites reach the server
    sites: [site-1, site-2, site-3]
    days: 365                              # validity of kits
    initial: model.pt                      # optional: the model that all begin from; `model:` if only its shapes count
    he: {preset: exact}                    # from here on a configuration, as `secagg plan` writes it
    aggregation: {min_clients: 3, max_clients: 10, max_abs: 0.5, max_weight: 1000}"""

#: The folder, among the kits, of what the provisioner keeps.
AUTHORITY = "authority"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Make keys, certificates and a signed manifest, and pack an encrypted kit for the server and each site."""
    parser.add_argument("project", type=Path, help="what the federation is to be (YAML, below)")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder for the kits; must be new")
    passphrases.add_option(parser, "one is generated for each kit")


def run(options: argparse.Namespace) -> None:
    """Make the kits and say what to do with them."""
    from ..setup.provisioner import Provisioner

    out: Path = options.out
    file = ProjectFile.load(options.project)
    passphrase = passphrases.given_for_new_kits(options.passphrase_file)
    with new_folder(out) as folder, TemporaryDirectory(prefix=".kits-", dir=folder) as room:
        with progress(f"make keys and certificates of {len(file.sites)} sites and the server"):
            project = Provisioner.create(file, folder / AUTHORITY, Path(room)).project
        pack_kits(Path(room), folder, out / PASSPHRASES_FILE, passphrase)
    print(f"project {project.name}, serial {project.serial}, valid until {show_time(project.expires)}")
    print_kits(out, [SERVER, *(site.name for site in active_sites(project))], passphrase)
    print(
        f"{out / AUTHORITY} issues kits later and holds every HE key: keep it, offline and backed up, "
        "off the server and the sites"
    )
    if not file.hosts:
        print("warning: hosts is empty: sites can reach this server on its own machine alone, as localhost")
    print_warnings(project)


def pack_kits(kits: Path, out: Path, noted: Path, passphrase: str | None, kept: Iterable[str] = ()) -> None:
    """Encrypt kits, and write the list of the passphrases that are generated for them.

    Parameters
    ----------
    kits : Path
        Folder with a folder for each kit.
    out : Path
        Folder for the encrypted kits and the list.
    noted : Path
        The list until now; it may be missing.
    passphrase : str or None
        That of all kits; None: each gets its own, which the list tells.
    kept : iterable of str
        Names of parties whose kits stay as they are, and whose lines stay in the list.
    """
    folders = sorted(kits.iterdir())
    made: dict[str, str] = {}
    with progress(f"encrypt {show_count(len(folders), 'kit')}, one or two seconds each") as report:
        for number, kit in enumerate(folders):
            report(number, len(folders))
            own = passphrases.generate() if passphrase is None else passphrase
            pack(kit, out / f"{kit.name}{SUFFIX}", own)
            if passphrase is None:
                made[f"{kit.name}{SUFFIX}"] = own
        report(len(folders), len(folders))
    passphrases.note(noted, out / PASSPHRASES_FILE, made, {f"{name}{SUFFIX}" for name in kept})


def print_kits(out: Path, names: Iterable[str], passphrase: str | None) -> None:
    """Say where kits are and what their owners do with them."""
    for name in names:
        secret = "no HE secret" if name == SERVER else "holds the HE key: keep it from the server"
        print(f"  {out / name}{SUFFIX}  ({secret})")
    where = f"in {out / PASSPHRASES_FILE}" if passphrase is None else "the one that was given"
    print(f"passphrases: {where}; send them on another way than the kits, which are opened by `secagg unpack FILE`")


def print_warnings(project: Project) -> None:
    """Say if a project cannot work as it is."""
    least, count = project.config.aggregation.min_clients, len(active_sites(project))
    if count < least:
        print(f"warning: {count} sites take part, aggregation.min_clients is {least}: no round can succeed; add sites")
