"""A kit: the folder that one party of a federation gets, made by ``secagg provision`` and opened by ``secagg unpack``.

=======================  =====================================  ==================
file                     site                                   server
=======================  =====================================  ==================
``federation.yaml``      configuration                          configuration
``project.secagg``       the manifest, signed                   the manifest
``signing.key``          what it signs its updates with         its receipts with
``client.key``           the shared HE key                      –
``server.key``           –                                      ring, fingerprint
``ca.crt``               authority of the certificates          authority
``tls.crt, tls.key``     the site's certificate                 the server's
``client-<e>.key``       the HE key of an earlier epoch `e`     –
``project-<e>.secagg``   the last manifest of that epoch        –
``signing-<e>.key``      what it signed with then               –
=======================  =====================================  ==================

The last three are left by ``secagg unpack`` when a newer kit takes the place of an older one: what was encrypted under
the old key, a stored model say, stays readable at the site.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ..config import Config
from ..errors import ConfigError, KeyFileError, KeyMismatchError
from ..storage.files import os_errors, replace_file
from ..storage.locks import open_locked
from .identity import Identity
from .key import ClientKey, ServerKey, check_role, load_key
from .project import Party, Project

CONFIG_FILE = "federation.yaml"
PROJECT_FILE = "project.secagg"
IDENTITY_FILE = "signing.key"
CLIENT_KEY_FILE = "client.key"
SERVER_KEY_FILE = "server.key"
CA_FILE = "ca.crt"
TLS_FILE = "tls.crt"
TLS_KEY_FILE = "tls.key"

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


_OLD_KEY = re.compile(r"client-(\d{1,10})\.key")


@dataclass(frozen=True)
class SiteKit:
    """What a site has. Make it with `load_site_kit`.

    Parameters
    ----------
    folder : Path
        Where it lies; ``Tls.load(kit.folder)`` reads the certificate.
    name : str
        Name of the site: that of the manifest's party whose public key is the kit's.
    config : Config
        The federation's configuration, the same as ``project.config``.
    key : ClientKey
        The HE key of the manifest's epoch.
    project : Project
        The manifest; its signature has been verified, its time has not: call ``project.check_time()``.
    identity : Identity
        What the site signs with.
    old_epochs : tuple of int
        Earlier epochs whose keys the folder still has; `old_epoch` loads them.
    """

    folder: Path
    name: str
    config: Config
    key: ClientKey
    project: Project
    identity: Identity
    old_epochs: tuple[int, ...] = ()

    @property
    def tls(self) -> Path:
        """Folder of the certificate, for ``Tls.load``."""
        return self.folder

    def old_epoch(self, epoch: int) -> SiteKit:
        """Return what the site had in an earlier epoch, for a `Client` that reads what is encrypted under its key.

        Raises
        ------
        KeyFileError
            If a file of that epoch is missing or damaged, or they do not belong together.
        """
        files = {name: self.folder / of_epoch(name, epoch) for name in OLD_FILES}
        if epoch not in self.old_epochs:
            known = ", ".join(map(str, self.old_epochs)) or "none"
            raise KeyFileError(
                f"{self.folder} has no key of epoch {epoch} (earlier epochs: {known}); restore "
                f"{', '.join(path.name for path in files.values())} from a backup"
            )
        project, identity = Project.load(files[PROJECT_FILE]), Identity.load(files[IDENTITY_FILE])
        key = load_client_key(files[CLIENT_KEY_FILE], project)
        name = find_owner(files[IDENTITY_FILE], project.sites, identity).name
        return SiteKit(self.folder, name, project.config, key, project, identity)

    def store_manifest(self, manifest: bytes) -> SiteKit:
        """Keep a later manifest, as the server handed it out, so that no earlier one is believed after a restart.

        Returns
        -------
        SiteKit
            This kit with that manifest.

        Raises
        ------
        FormatError, SignatureError, VerificationError
            If it is not this kit's manifest or a later one; see `Project.successor`.
        KeyMismatchError
            If it is of another epoch, whose HE key comes with a newer kit; nothing is stored.
        StorageError
            If it cannot be written.
        """
        project = self.project.successor(manifest)
        if project.epoch != self.project.epoch:
            raise KeyMismatchError(
                f"the federation has a new HE key, of epoch {project.epoch}, this kit has that of epoch "
                f"{self.project.epoch}: unpack the newest kit of {self.name}"
            )
        # A newer kit may have been unpacked over this one meanwhile.
        if project.serial > max(self.project.serial, Project.load(self.folder / PROJECT_FILE).serial):
            with replace_file(self.folder / PROJECT_FILE) as file:
                file.write(manifest)
        return replace(self, project=project)


@dataclass(frozen=True)
class ServerKit:
    """What the server has: nothing that decrypts. Make it with `load_server_kit`.

    Parameters
    ----------
    folder : Path
        Where it lies; ``Tls.load(kit.folder)`` reads the certificate.
    config : Config
        The federation's configuration, the same as ``project.config``.
    key : ServerKey
        Ring and fingerprint of the HE key of the manifest's epoch.
    project : Project
        The manifest; its signature has been verified, its time has not: call ``project.check_time()``.
    identity : Identity
        What the server signs receipts with.
    """

    folder: Path
    config: Config
    key: ServerKey
    project: Project
    identity: Identity

    @property
    def name(self) -> str:
        """Name of the server in the manifest."""
        return self.project.server.name

    @property
    def tls(self) -> Path:
        """Folder of the certificate, for ``Tls.load``."""
        return self.folder


def load_site_kit(folder: Path) -> SiteKit:
    """Read a site's kit and hold its parts against its manifest; the clock is not looked at.

    Raises
    ------
    ConfigError
        If the configuration is missing or invalid.
    KeyFileError
        If another file is missing or damaged, or parts do not belong together.
    IdentityError
        If the manifest has revoked the site.
    """
    if is_server_kit(folder):
        raise KeyFileError(f"{folder} is the server's kit; give that of a site")
    config = Config.load(folder / CONFIG_FILE)
    project, identity = _project(folder, config), Identity.load(folder / IDENTITY_FILE)
    key = load_client_key(folder / CLIENT_KEY_FILE, project)
    name = find_owner(folder / IDENTITY_FILE, project.sites, identity).name
    project.site(name)
    return SiteKit(folder, name, config, key, project, identity, _old_epochs(folder))


def load_server_kit(folder: Path) -> ServerKit:
    """Read the server's kit and hold its parts against its manifest; errors as of `load_site_kit`."""
    if not is_server_kit(folder):
        raise KeyFileError(f"{folder} is the kit of a site; give the server's")
    config = Config.load(folder / CONFIG_FILE)
    project, identity = _project(folder, config), Identity.load(folder / IDENTITY_FILE)
    key = load_server_key(folder / SERVER_KEY_FILE, project)
    find_owner(folder / IDENTITY_FILE, (project.server,), identity)
    return ServerKit(folder, config, key, project, identity)


def load_kit(folder: Path) -> SiteKit | ServerKit:
    """Read a kit of either kind; errors as of `load_site_kit`."""
    return load_server_kit(folder) if is_server_kit(folder) else load_site_kit(folder)


def is_server_kit(folder: Path) -> bool:
    """Return whether the folder holds the server's kit; `KeyFileError` if it holds none at all, or none to be seen."""
    with _readable(folder):
        if (folder / SERVER_KEY_FILE).exists():
            return True
        if (folder / CLIENT_KEY_FILE).exists():
            return False
    if folder.is_file():
        raise KeyFileError(f"{folder} is a file; open it with `secagg unpack {folder}`, and give the folder")
    raise KeyFileError(
        f"{folder} is no kit: it has neither {CLIENT_KEY_FILE} nor {SERVER_KEY_FILE}; "
        "open a kit with `secagg unpack FILE.kit`"
    )


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


def active_sites(project: Project) -> tuple[Party, ...]:
    """Return the sites that take part: those that are not revoked."""
    return tuple(site for site in project.sites if not site.revoked)


def of_epoch(name: str, epoch: int) -> str:
    """Return the name under which a file of a kit stays when one of a later epoch takes its place."""
    stem, dot, suffix = name.rpartition(".")
    return f"{stem}-{epoch}{dot}{suffix}"


def is_secret(name: str) -> bool:
    """Return whether a file of a kit is for its owner's eyes alone."""
    return name.endswith(".key") and name != SERVER_KEY_FILE


def load_client_key(path: Path, project: Project) -> ClientKey:
    """Read the HE key of a project's epoch; `KeyFileError` if it is another, or none."""
    key = load_key(path)
    check_role(key, ClientKey)
    assert isinstance(key, ClientKey)
    project.check_key(key.server.epoch, key.fingerprint)
    return key


def load_server_key(path: Path, project: Project) -> ServerKey:
    """Read the server's part of the HE key of a project's epoch; `KeyFileError` if it is another, or none."""
    key = load_key(path)
    check_role(key, ServerKey)
    assert isinstance(key, ServerKey)
    project.check_key(key.epoch, key.fingerprint)
    return key


def find_owner(path: Path, parties: tuple[Party, ...], identity: Identity) -> Party:
    """Return whose signing key, the file `path`, it is; `KeyFileError` if it is nobody's."""
    for party in parties:
        if party.public == identity.public:
            return party
    raise KeyFileError(
        f"{path} has the public key {identity.public.hex()[:16]}…, which the manifest gives to none "
        f"of {', '.join(party.name for party in parties)}; unpack the newest kit"
    )


def _project(folder: Path, config: Config) -> Project:
    project = Project.load(folder / PROJECT_FILE)
    if project.config != config:
        raise KeyFileError(
            f"{folder / CONFIG_FILE} is not the configuration that the manifest of project {project.name} holds; "
            "unpack the kit again (a changed configuration needs a new project)"
        )
    return project


def _old_epochs(folder: Path) -> tuple[int, ...]:
    with _readable(folder):
        found = [_OLD_KEY.fullmatch(path.name) for path in folder.iterdir()]
    return tuple(sorted(int(match[1]) for match in found if match))


def _readable(folder: Path) -> AbstractContextManager[None]:
    remedy = "try as its owner, or have its owner give it to this user"
    return os_errors(KeyFileError, f"cannot read the kit {folder}", remedy)
