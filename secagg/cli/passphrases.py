"""Passphrases of kits: made, given or asked for; shown nowhere."""

from __future__ import annotations

import argparse
import getpass
import os
import secrets
import sys
from collections.abc import Collection
from pathlib import Path

from ..errors import ConfigError, KeyFileError
from ..storage.files import open_regular, replace_file

VARIABLE = "SECAGG_PASSPHRASE"
PASSPHRASES_FILE = "passphrases.txt"

#: Shortest passphrase that is accepted.
MIN_LENGTH = 12

_MAX_FILE_NBYTES = 4096
_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"  # without those that are taken for each other
_GROUPS, _GROUP_LENGTH = 6, 5  # 30 characters of 31: 148 bits


def add_option(parser: argparse.ArgumentParser, otherwise: str) -> None:
    """Add ``--passphrase-file``; `otherwise` says what happens without it."""
    parser.add_argument(
        "--passphrase-file",
        type=Path,
        metavar="FILE",
        help=f"file with the passphrase alone (default: the variable {VARIABLE}, else {otherwise})",
    )


def generate() -> str:
    """Return a new passphrase from the operating system's randomness."""
    groups = ("".join(secrets.choice(_ALPHABET) for _ in range(_GROUP_LENGTH)) for _ in range(_GROUPS))
    return "-".join(groups)


def given(file: Path | None) -> str | None:
    """Return the passphrase of a file, or of the environment; None if there is neither.

    Raises
    ------
    KeyFileError
        If the file cannot be read, or holds more than a line of text.
    """
    if file is None:
        return os.environ.get(VARIABLE)
    try:
        with open_regular(file) as opened:
            lines = opened.read(_MAX_FILE_NBYTES).decode().splitlines()
    except OSError as error:
        raise KeyFileError(f"cannot read {str(file)!r}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise KeyFileError(f"{file} is not text in UTF-8; write the passphrase into it, in one line") from None
    if len(lines) != 1:
        raise KeyFileError(f"{file} has {len(lines)} lines; write the passphrase into it alone, in one line")
    return lines[0]


def given_for_new_kits(file: Path | None) -> str | None:
    """Return the passphrase that new kits are to have, as `given`; `ConfigError` if it is too short."""
    passphrase = given(file)
    if passphrase is not None and len(passphrase) < MIN_LENGTH:
        where = str(file or f"the variable {VARIABLE}")
        raise ConfigError(f"the passphrase of {where} has {len(passphrase)} characters; use {MIN_LENGTH} or more")
    return passphrase


def ask(file: Path | None, kit: Path) -> str:
    """Return the passphrase that is given, or else typed at the terminal.

    Raises
    ------
    ConfigError, KeyFileError
        As of `given`; and a `ConfigError` if there is no terminal, a `KeyFileError` if there is no such kit.
    """
    if not kit.exists():
        raise KeyFileError(f"there is no {str(kit)!r}; name the file *.kit that the provisioner sent")
    passphrase = given(file)
    if passphrase is not None:
        return passphrase
    if not sys.stdin.isatty():
        raise ConfigError(f"no terminal to ask for the passphrase of {kit}; set {VARIABLE} or use --passphrase-file")
    try:
        return getpass.getpass(f"passphrase of {kit}: ")
    except EOFError:
        raise ConfigError(f"no passphrase was given for {kit}") from None


def note(old: Path, new: Path, made: dict[str, str], kept: Collection[str]) -> None:
    """Write the list of passphrases, with permissions 0600; none if it would be empty.

    Parameters
    ----------
    old, new : Path
        The list until now, which may be missing; the file to write.
    made : dict
        File of a kit to the passphrase that was generated for it.
    kept : collection of str
        Files of kits whose lines stay.
    """
    lines = old.read_text(encoding="utf-8").splitlines() if old.exists() else []
    stay = [line for line in lines if line.partition(" ")[0] in kept]
    text = "".join(f"{line}\n" for line in (*stay, *(f"{kit} {passphrase}" for kit, passphrase in made.items())))
    if not text:
        return
    with replace_file(new, 0o600) as file:
        file.write(text.encode())
