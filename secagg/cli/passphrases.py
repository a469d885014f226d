"""Passphrases of kits, as an operator gives them: in a file, in the environment, or at the terminal."""

from __future__ import annotations

import argparse
import getpass
import os
import sys
from pathlib import Path

from ..errors import ConfigError, KeyFileError
from ..setup.passphrases import check_passphrase
from ..storage.files import open_regular, os_errors

VARIABLE = "SECAGG_PASSPHRASE"

_MAX_FILE_NBYTES = 4096


def add_option(parser: argparse.ArgumentParser, otherwise: str) -> None:
    """Add ``--passphrase-file``; `otherwise` says what happens without it."""
    parser.add_argument(
        "--passphrase-file",
        type=Path,
        metavar="FILE",
        help=f"file with the passphrase alone (default: the variable {VARIABLE}, else {otherwise})",
    )


def given(file: Path | None) -> str | None:
    """Return the passphrase of a file, or of the environment; None if there is neither.

    Raises
    ------
    KeyFileError
        If the file cannot be read, or holds more than a line of text.
    """
    if file is None:
        value = os.environb.get(VARIABLE.encode())
        return None if value is None else _text(value, f"the variable {VARIABLE}")
    with os_errors(KeyFileError, f"cannot read {str(file)!r}"), open_regular(file) as opened:
        lines = _text(opened.read(_MAX_FILE_NBYTES), file).splitlines()
    if len(lines) != 1:
        raise KeyFileError(f"{file} has {len(lines)} lines; write the passphrase into it alone, in one line")
    return lines[0]


def given_for_new_kits(file: Path | None) -> str | None:
    """Return the passphrase that new kits are to have, as `given`; `ConfigError` if it is too short."""
    passphrase, where = given(file), file or f"the variable {VARIABLE}"
    return None if passphrase is None else check_passphrase(passphrase, f"the passphrase of {where}")


def ask(file: Path | None, kit: Path) -> str:
    """Return the passphrase that is given, or else typed at the terminal.

    Raises
    ------
    ConfigError, KeyFileError
        As of `given`; and a `ConfigError` if there is no terminal or it has not the characters, a `KeyFileError` if
        there is no such kit.
    """
    if not kit.exists():
        raise KeyFileError(f"there is no {str(kit)!r}; name the file *.kit that the provisioner sent")
    passphrase = given(file)
    if passphrase is not None:
        return passphrase
    if not sys.stdin.isatty():
        raise ConfigError(f"no terminal to ask for the passphrase of {kit}; set {VARIABLE} or use --passphrase-file")
    try:
        typed = getpass.getpass(f"passphrase of {kit}: ")
        typed.encode()
    except EOFError:
        raise ConfigError(f"no passphrase was given for {kit}") from None
    except UnicodeError:  # whose message would hold what was typed
        raise ConfigError(
            f"the passphrase of {kit} has characters that the locale lacks; set {VARIABLE} or use --passphrase-file"
        ) from None
    return typed


def _text(data: bytes, where: object) -> str:
    """Return text as UTF-8 has it, whatever the locale: a passphrase must be the same everywhere."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise KeyFileError(f"{where} is not text in UTF-8; write the passphrase there, in one line") from None
