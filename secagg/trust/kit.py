"""Kits: what a site or the server has, read from its folder (`secagg.trust.kit_files`) and held together."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from ..config import Config
from ..errors import KeyFileError, KeyMismatchError, StorageError
from ..storage.files import absolute, is_path, os_errors, replace_file
from ..storage.locks import open_locked
from ..storage.staging import finish
from .identity import Identity
from .key import ClientKey, ServerKey, check_role, load_key
from .kit_files import (
    CLIENT_KEY_FILE,
    CONFIG_FILE,
    IDENTITY_FILE,
    OLD_FILES,
    PROJECT_FILE,
    SERVER_KEY_FILE,
    find_file,
    is_server_kit,
    of_epoch,
    old_epochs,
    warn_of_older,
)
from .parties import Party
from .project import Project


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

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", absolute(self.folder))

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
        files = {name: find_file(self.folder, of_epoch(name, epoch)) for name in OLD_FILES}
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
        """Keep a later manifest, as the server handed it out, so that no earlier one is believed from now on.

        What counts is the manifest in the folder: another process of this site may have seen a later one.

        Returns
        -------
        SiteKit
            This kit with that manifest.

        Raises
        ------
        FormatError, SignatureError, VerificationError
            If it is not this kit's manifest or a later one, or not that in the folder or a later one; see
            `Project.successor`.
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
        path = self.folder / PROJECT_FILE
        with (
            os_errors(StorageError, f"cannot keep the newest manifest in {self.folder}"),
            open_locked(self.folder, os.O_RDONLY | os.O_DIRECTORY),  # as `change_folder` does, for `secagg unpack`
        ):
            finish(self.folder)  # a newer kit, perhaps, which must not come back over a still later manifest
            known = Project.load(path)
            if known.successor(manifest).serial > known.serial:
                with replace_file(path) as file:
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", absolute(self.folder))

    @property
    def name(self) -> str:
        """Name of the server in the manifest."""
        return self.project.server.name

    @property
    def tls(self) -> Path:
        """Folder of the certificate, for ``Tls.load``."""
        return self.folder


def load_site_kit(folder: str | os.PathLike[str]) -> SiteKit:
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
    folder = Path(folder)
    if is_server_kit(folder):
        raise KeyFileError(f"{folder} is the server's kit; give that of a site")
    warn_of_older(folder, CLIENT_KEY_FILE)
    config = Config.load(folder / CONFIG_FILE)
    project, identity = _project(folder, config), Identity.load(folder / IDENTITY_FILE)
    key = load_client_key(find_file(folder, CLIENT_KEY_FILE), project)
    name = find_owner(folder / IDENTITY_FILE, project.sites, identity).name
    project.site(name)
    return SiteKit(folder, name, config, key, project, identity, old_epochs(folder))


def load_server_kit(folder: str | os.PathLike[str]) -> ServerKit:
    """Read the server's kit and hold its parts against its manifest; errors as of `load_site_kit`."""
    folder = Path(folder)
    if not is_server_kit(folder):
        raise KeyFileError(f"{folder} is the kit of a site; give the server's")
    warn_of_older(folder, SERVER_KEY_FILE)
    config = Config.load(folder / CONFIG_FILE)
    project, identity = _project(folder, config), Identity.load(folder / IDENTITY_FILE)
    key = load_server_key(find_file(folder, SERVER_KEY_FILE), project)
    find_owner(folder / IDENTITY_FILE, (project.server,), identity)
    return ServerKit(folder, config, key, project, identity)


def load_kit(folder: str | os.PathLike[str]) -> SiteKit | ServerKit:
    """Read a kit of either kind; errors as of `load_site_kit`."""
    return load_server_kit(folder) if is_server_kit(Path(folder)) else load_site_kit(folder)


def site_kit(kit: object) -> SiteKit:
    """Return a site's kit, given it or its folder; errors as of `load_site_kit`."""
    if isinstance(kit, SiteKit):
        return kit
    if isinstance(kit, ServerKit):
        raise KeyFileError(f"{kit.folder} is the server's kit; give that of a site")
    return load_site_kit(_folder(kit))


def server_kit(kit: object) -> ServerKit:
    """Return the server's kit, given it or its folder; errors as of `load_site_kit`."""
    if isinstance(kit, ServerKit):
        return kit
    if isinstance(kit, SiteKit):
        raise KeyFileError(f"{kit.folder} is the kit of a site; give the server's")
    return load_server_kit(_folder(kit))


def _folder(kit: object) -> Path:
    if not is_path(kit):
        raise KeyFileError(f"a kit is given as {type(kit).__name__}; pass its folder, or what load_kit returns")
    return Path(kit)


def active_sites(project: Project) -> tuple[Party, ...]:
    """Return the sites that take part: those that are not revoked."""
    return tuple(site for site in project.sites if not site.revoked)


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
