"""A kit: the folder that one party of a federation gets, made by ``secagg provision`` and opened by ``secagg unpack``.

=======================  =====================================  ==================
file                     site                                   server
=======================  =====================================  ==================
``federation.yaml``      configuration                          configuration
``project.secagg``       the manifest, signed                   the manifest
``signing.key``          what it signs its updates with         its receipts with
``he-client.key``        the shared HE key                      –
``he-server.key``        –                                      ring, fingerprint
``ca.crt``               authority of the certificates          authority
``tls.crt, tls.key``     the site's certificate                 the server's
``he-client-<e>.key``    the HE key of an earlier epoch `e`     –
``project-<e>.secagg``   the last manifest of that epoch        –
``signing-<e>.key``      what it signed with then               –
=======================  =====================================  ==================

Those of an earlier epoch are left by ``secagg unpack`` when a newer kit takes the place of an older one: what was
encrypted under the old key, a stored model say, stays readable at the site. The site's ``failures`` count how often an
aggregate did not decrypt.

In earlier releases the HE keys were ``client.key``, ``server.key`` and ``client-<e>.key``, as the TLS keys of NVFlare's
kits are. What has such a name and is a key of ours is still read, with a `KitWarning`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from ..errors import ConfigError, KeyFileError, KitWarning, warn
from ..storage.files import open_regular, os_errors
from ..storage.locks import open_locked
from ..wire.container import MAGIC

CONFIG_FILE = "federation.yaml"
PROJECT_FILE = "project.secagg"
IDENTITY_FILE = "signing.key"
CLIENT_KEY_FILE = "he-client.key"
SERVER_KEY_FILE = "he-server.key"
CA_FILE = "ca.crt"
TLS_FILE = "tls.crt"
TLS_KEY_FILE = "tls.key"

#: Which key did not decrypt an aggregate, as often as that happened: see `secagg.trust.failures`.
FAILURES_FILE = "failures"

#: Held by the process of a site that works in its kit's folder.
LOCK_FILE = "lock"

#: Name of the server in the manifest, of its kit and of its certificate; no site may have it.
SERVER = "server"

_COMMON_FILES = (CONFIG_FILE, PROJECT_FILE, IDENTITY_FILE, CA_FILE, TLS_FILE, TLS_KEY_FILE)
#: All files of a new kit.
SITE_FILES = frozenset((*_COMMON_FILES, CLIENT_KEY_FILE))
SERVER_FILES = frozenset((*_COMMON_FILES, SERVER_KEY_FILE))
#: Those of which a site keeps what it had in earlier epochs.
OLD_FILES = (CLIENT_KEY_FILE, PROJECT_FILE, IDENTITY_FILE)

#: Before the names of files that had none in earlier releases.
_PREFIX = "he-"
_OLD_KEY = re.compile(r"he-client-(\d{1,10})\.key")


def is_server_kit(folder: Path) -> bool:
    """Return whether the folder holds the server's kit; `KeyFileError` if it holds none at all, or none to be seen."""
    with _readable(folder):
        for path in (folder / SERVER_KEY_FILE, folder / CLIENT_KEY_FILE):
            if path.exists():
                return path.name == SERVER_KEY_FILE
        for name in (SERVER_KEY_FILE, CLIENT_KEY_FILE):
            if find_file(folder, name).exists():
                return name == SERVER_KEY_FILE
        foreign = [name for name in map(older_name, (SERVER_KEY_FILE, CLIENT_KEY_FILE)) if (folder / name).exists()]
        for name in foreign:
            open_regular(folder / name).close()  # or nobody can tell what it is
    if folder.is_file() and (folder.parent / CONFIG_FILE).exists():
        raise KeyFileError(f"{folder} is a file of a kit; give the kit's folder, {folder.parent}")
    if folder.is_file():
        raise KeyFileError(f"{folder} is a file; open it with `secagg unpack {folder}`, and give the folder")
    others = f" (its {foreign[0]} is no key of secagg: a TLS key, as NVFlare's kits have?)" if foreign else ""
    raise KeyFileError(
        f"{folder} is no kit: it has neither {CLIENT_KEY_FILE} nor {SERVER_KEY_FILE}{others}; "
        "open a kit with `secagg unpack FILE.kit`"
    )


def find_file(folder: Path, name: str) -> Path:
    """Return the path of a file of a kit: under the name of earlier releases, if only that is there."""
    path, older = folder / name, folder / older_name(name)
    return older if not path.exists() and _is_key(older) else path


def older_name(name: str) -> str:
    """Return the name that a file of a kit had in earlier releases."""
    return name.removeprefix(_PREFIX)


def older_files(folder: Path, name: str) -> dict[str, Path]:
    """Return the HE keys, of this and earlier epochs, that have names of earlier releases, by those of today.

    `name` is `CLIENT_KEY_FILE` or `SERVER_KEY_FILE`.
    """
    stem, _, suffix = older_name(name).rpartition(".")
    older = re.compile(rf"{stem}(-\d{{1,10}})?\.{suffix}")
    with _readable(folder):
        return {
            f"{_PREFIX}{path.name}": path
            for path in sorted(folder.iterdir())
            if older.fullmatch(path.name) and _is_key(path)
        }


def warn_of_older(folder: Path, name: str) -> None:
    """Issue a `KitWarning` if HE keys in a folder have names of earlier releases; see `older_files`."""
    older = older_files(folder, name)
    if older:
        warn(f"in {folder}, {advice_of_older(older)}", KitWarning)


def advice_of_older(older: Mapping[str, Path]) -> str:
    """Return what to do about what `older_files` has found."""
    renames = ", ".join(f"{path.name} to {name}" for name, path in older.items())
    return f"HE keys have the names of an earlier release, which are those of TLS keys elsewhere: rename {renames}"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes of the same site away from its files.

    Raises
    ------
    ConfigError
        If one is at work.
    KeyFileError
        If this user may not write to the folder.
    """
    busy = ConfigError(f"another `secagg site` is at work in {folder}; one kit, one process")
    with ExitStack() as stack:
        with os_errors(KeyFileError, f"cannot write to the kit {folder}", "run this as the owner of the folder"):
            stack.enter_context(open_locked(folder / LOCK_FILE, os.O_WRONLY | os.O_CREAT, busy))
        yield


def of_epoch(name: str, epoch: int) -> str:
    """Return the name under which a file of a kit stays when one of a later epoch takes its place."""
    stem, dot, suffix = name.rpartition(".")
    return f"{stem}-{epoch}{dot}{suffix}"


def is_secret(name: str) -> bool:
    """Return whether a file of a kit is for its owner's eyes alone."""
    return name.endswith(".key") and name not in (SERVER_KEY_FILE, older_name(SERVER_KEY_FILE))


def old_epochs(folder: Path) -> tuple[int, ...]:
    """Return the earlier epochs whose HE keys a site's folder still has."""
    with _readable(folder):
        names = {path.name for path in folder.iterdir()} | older_files(folder, CLIENT_KEY_FILE).keys()
    found = map(_OLD_KEY.fullmatch, names)
    return tuple(sorted({int(match[1]) for match in found if match}))


def _readable(folder: Path) -> AbstractContextManager[None]:
    remedy = "try as its owner, or have its owner give it to this user"
    return os_errors(KeyFileError, f"cannot read the kit {folder}", remedy)


def _is_key(path: Path) -> bool:
    """Return whether a file begins as a key of ours does."""
    try:
        with open_regular(path) as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False
