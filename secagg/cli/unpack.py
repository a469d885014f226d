"""``secagg unpack``: opens a kit, also over the one that it replaces."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import KeyFileError, show_time
from ..setup import installing, packing
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
    kit = installing.install(read(file, passphrases.ask(options.passphrase_file, file)), out)
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
