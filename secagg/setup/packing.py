"""A kit as one file: a tar archive, encrypted under a passphrase in the format age (age-encryption.org/v1)."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import KeyFileError
from ..storage.files import open_regular, os_errors, replace_file
from ..storage.signals import undisturbed
from ..trust.kit_files import CLIENT_KEY_FILE, SERVER_FILES, SERVER_KEY_FILE, SITE_FILES, is_secret, older_name

SUFFIX = ".kit"

#: What a kit begins with, in any version of age.
MAGIC = b"age-encryption.org/"

#: The names of files in a kit, also of one of an earlier release, to those under which they are unpacked.
_NAMES = {named: name for name in SITE_FILES | SERVER_FILES for named in (name, older_name(name))}

#: No kit is larger: its HE key takes 64 MiB at most.
MAX_KIT_NBYTES = 128 << 20


def pack(folder: Path, path: Path, passphrase: str) -> None:
    """Write the files of a kit's folder to one file, encrypted.

    Parameters
    ----------
    folder : Path
        A new kit: the files of a site or of the server, and nothing else.
    path : Path
        File to make, with permissions 0600.
    passphrase : str
        Opens it. The format stretches it with scrypt, which takes about a second.
    """
    age = _pyrage().passphrase
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for file in sorted(folder.iterdir()):
            data = file.read_bytes()
            member = tarfile.TarInfo(file.name)
            member.size, member.mode = len(data), permissions(file.name)
            tar.addfile(member, io.BytesIO(data))
    sealed = age.encrypt(archive.getvalue(), passphrase)
    with replace_file(path, 0o600) as out:
        out.write(sealed)


def unpack(path: Path, passphrase: str) -> dict[str, bytes]:
    """Return the files of a kit by name; nothing is written, so no name can lead anywhere.

    Raises
    ------
    KeyFileError
        If it cannot be read, the passphrase is another, or it has been cut or changed, or it is no kit.
    """
    pyrage = _pyrage()
    with os_errors(KeyFileError, f"cannot read {str(path)!r}"), open_regular(path) as file:
        sealed = file.read(MAX_KIT_NBYTES + 1)
    if len(sealed) > MAX_KIT_NBYTES or not sealed.startswith(b"age-encryption.org/v1\n"):
        raise KeyFileError(f"{path} is not a kit; kits are the files *{SUFFIX} that `secagg provision` makes")
    try:
        archive = pyrage.passphrase.decrypt(sealed, passphrase)
    except pyrage.DecryptError as error:
        raise KeyFileError(
            f"{path} does not open: the passphrase is that of another kit, or the file was cut or changed on its way "
            f"({error}); compare its size with the provisioner's"
        ) from error
    return read_archive(archive, path)


def read_archive(archive: bytes, path: Path) -> dict[str, bytes]:
    """Return the files of a kit, which has been decrypted, by name; `KeyFileError` if it is not just these."""
    try:
        return _read(archive)
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise KeyFileError(f"{path} opens, but is not a kit: {error}") from error


def write(files: Mapping[str, bytes], folder: Path) -> None:
    """Write files of a kit into a folder, secret ones with permissions 0600 from their first byte on."""
    for name, data in files.items():
        handle = os.open(
            folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, permissions(name)
        )
        with os.fdopen(handle, "wb") as file:
            file.write(data)


def permissions(name: str) -> int:
    """Return the permissions that a file of a kit has."""
    return 0o600 if is_secret(name) else 0o644


def _pyrage() -> Any:
    """Load the library. Whatever interrupts it while it loads, it turns into a panic of its own."""
    with undisturbed():
        import pyrage
    return pyrage


def _read(archive: bytes) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
        for member in tar:
            # Names are compared, not cleaned: "../x", "/x", links and devices are none of those that a kit has.
            name = _NAMES.get(member.name)
            if name is None or not member.isreg() or member.issparse():
                raise ValueError(f"it holds {member.name!r:.80}, which no kit has")
            if name in files:
                raise ValueError(f"it holds {name} twice")
            content = tar.extractfile(member)
            assert content is not None
            files[name] = content.read()
            if len(files[name]) != member.size:
                raise ValueError(f"{name} is cut")
    expected = SERVER_FILES if SERVER_KEY_FILE in files else SITE_FILES
    if files.keys() != expected:
        if {SERVER_KEY_FILE, CLIENT_KEY_FILE} <= files.keys():
            raise ValueError(f"it holds both {SERVER_KEY_FILE} and {CLIENT_KEY_FILE}")
        raise ValueError(f"it lacks {', '.join(sorted(expected - files.keys()))}")
    return files
