"""``secagg unpack``: opens a kit, also over the one that it replaces."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

from ..errors import KeyFileError, SignatureError, VerificationError, show_time
from ..setup import packing
from ..storage.staging import change_folder, is_committed, is_empty, new_folder
from ..trust.identity import Identity
from ..trust.kit import (
    CLIENT_KEY_FILE,
    IDENTITY_FILE,
    LOCK_FILE,
    OLD_FILES,
    PROJECT_FILE,
    ServerKit,
    SiteKit,
    load_client_key,
    load_kit,
    locked,
    of_epoch,
)
from ..trust.project import Project
from ..ui.progress import progress
from . import passphrases

EXAMPLE = """secagg unpack site-1.kit
secagg unpack server.kit --out /etc/secagg/server --passphrase-file passphrase"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Open a kit into a folder, or over an older kit there, whose HE key is kept for old models."""
    parser.add_argument("file", type=Path, metavar="FILE.kit", help="the kit that the provisioner sent")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where to (default: beside FILE, without .kit)")
    passphrases.add_option(parser, "it is asked for")


def run(options: argparse.Namespace) -> None:
    """Decrypt, verify, write, and say what was unpacked."""
    file: Path = options.file
    out: Path = options.out or default_folder(file)
    files = read(file, passphrases.ask(options.passphrase_file, file))
    unpack(files, out)
    kit = load_kit(out)
    project = kit.project
    print(
        f"{out}: kit of {kit.name} in project {project.name}, serial {project.serial}, epoch {project.epoch}, "
        f"valid until {show_time(project.expires)}"
    )
    print(f"next: secagg doctor {out}")


def default_folder(file: Path) -> Path:
    """Return the folder beside a kit that bears its name."""
    if file.suffix != packing.SUFFIX:
        raise KeyFileError(f"{file} is not called *{packing.SUFFIX}; name the folder with --out")
    return file.with_suffix("")


def read(file: Path, passphrase: str) -> dict[str, bytes]:
    """Decrypt a kit, with a sign of life; errors as of `packing.unpack`."""
    with progress(f"decrypt {file}, one or two seconds"):
        return packing.unpack(file, passphrase)


def unpack(files: Mapping[str, bytes], out: Path) -> None:
    """Write the files of a kit into a folder, all or none of them.

    Parameters
    ----------
    files : mapping
        Names to contents, all of a kit.
    out : Path
        A new or empty folder, or one with a kit of the same party that is not newer. What else lies there stays. The
        HE key of an earlier epoch stays as ``client-<epoch>.key``, with the manifest and the signing key of that epoch.

    Raises
    ------
    ConfigError, KeyFileError, IdentityError
        If the parts of the kit do not belong together.
    KeyFileError
        If `out` is something else, or holds a newer kit or one of another party or project.
    ConfigError
        If `secagg site` is at work there.
    """
    if not out.exists():
        with new_folder(out) as folder:
            packing.write(files, folder)
            load_kit(folder)
        return
    if not out.is_dir() or not ((out / PROJECT_FILE).is_file() or is_committed(out) or is_empty(out)):
        raise KeyFileError(f"{out} exists, and is not a kit's folder; name another with --out")
    with locked(out) if (out / LOCK_FILE).exists() else nullcontext(), change_folder(out) as stage:
        packing.write(files, stage.folder)
        new = load_kit(stage.folder)
        if not (out / PROJECT_FILE).is_file():
            return
        old = _check_successor(new, (stage.folder / PROJECT_FILE).read_bytes(), out)
        if isinstance(new, SiteKit) and old.epoch != new.project.epoch:
            load_client_key(out / CLIENT_KEY_FILE, old)
            kept = {of_epoch(name, old.epoch): (out / name).read_bytes() for name in OLD_FILES}
            packing.write(kept, stage.folder)


def _check_successor(new: SiteKit | ServerKit, manifest: bytes, out: Path) -> Project:
    """Return the manifest that lies in `out`, or raise `KeyFileError` if `new` may not take its kit's place."""
    other = "name another folder with --out"
    try:
        old, identity = Project.load(out / PROJECT_FILE), Identity.load(out / IDENTITY_FILE)
    except KeyFileError as error:
        raise KeyFileError(f"{out} exists, and holds no kit that could be replaced ({error}); {other}") from error
    owner = next((party.name for party in (old.server, *old.sites) if party.public == identity.public), None)
    if owner != new.name:
        raise KeyFileError(f"{out} holds a kit of {owner or 'nobody'}, this one is of {new.name}; {other}")
    try:
        old.successor(manifest)
    except SignatureError as error:
        raise KeyFileError(f"{out} holds a kit of project {old.name} of another provisioner; {other}") from error
    except VerificationError as error:
        raise KeyFileError(
            f"{out} holds a newer kit, of serial {old.serial}, than this one, of serial {new.project.serial}; "
            "ask the provisioner for the newest"
        ) from error
    return old
