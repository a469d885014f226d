"""Passphrases of kits: how long they are, those that are generated, and the list of them."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from pathlib import Path

from ..errors import ConfigError
from ..storage.files import replace_file

#: The list, beside the kits.
PASSPHRASES_FILE = "passphrases.txt"

#: Shortest passphrase that new kits can have.
MIN_LENGTH = 12

_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"  # without those that are taken for each other
_GROUPS, _GROUP_LENGTH = 6, 5  # 30 characters of 31: 148 bits


def check_passphrase(passphrase: str, what: str = "the passphrase") -> str:
    """Return the passphrase of new kits, or raise `ConfigError` if it is too short; `what` names it there."""
    if len(passphrase) < MIN_LENGTH:
        raise ConfigError(f"{what} has {len(passphrase)} characters; use {MIN_LENGTH} or more")
    return passphrase


def generate() -> str:
    """Return a new passphrase from the operating system's randomness."""
    groups = ("".join(secrets.choice(_ALPHABET) for _ in range(_GROUP_LENGTH)) for _ in range(_GROUPS))
    return "-".join(groups)


def note(old: Path, new: Path, made: Mapping[str, str], kept: Collection[str]) -> None:
    """Write the list of passphrases, with permissions 0600; none if it would be empty.

    Parameters
    ----------
    old, new : Path
        The list until now, which may be missing; the file to write.
    made : mapping of str to str
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
