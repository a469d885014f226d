"""The provisioner's folder, kept off the server and the sites, and the kits that are made from it.

=====================  ================================================================
``project.secagg``     the newest manifest: members, public keys, configuration, serial
``signing.key``        what manifests are signed with
``ca.crt, ca.key``     the authority of the certificates
``he-client-<e>.key``  the HE key of each epoch `e`
``server/``            certificate and signing key of the server
=====================  ================================================================

The private keys of sites are in their kits only. Here kits are folders; `secagg.setup.packing` encrypts them.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import ConfigError, KeyFileError, show_time
from ..keygen import generate_keys
from ..storage.files import absolute, replace_file
from ..storage.yaml_file import to_yaml
from ..trust import Authority, Certificate, Tls
from ..trust.identity import Identity
from ..trust.key import ClientKey
from ..trust.kit import active_sites, load_client_key
from ..trust.kit_files import (
    CA_FILE,
    CLIENT_KEY_FILE,
    CONFIG_FILE,
    IDENTITY_FILE,
    PROJECT_FILE,
    SERVER,
    SERVER_KEY_FILE,
    TLS_FILE,
    TLS_KEY_FILE,
    find_file,
    of_epoch,
    warn_of_older,
)
from ..trust.parties import Party
from ..trust.project import Project
from .project_file import ProjectFile, check_count, check_days, check_names

CA_KEY_FILE = "ca.key"

#: The authority outlives the first certificates by so much, so that they can be renewed under it.
_AUTHORITY_DAYS = 3650
_DAY_SECONDS = 86_400


@dataclass(frozen=True)
class Provisioner:
    """The provisioner of one federation. `create` makes a new one, `load` reads its folder.

    Parameters
    ----------
    project : Project
        The newest manifest.
    identity : Identity
        Signs manifests.
    key : ClientKey
        The HE key of the manifest's epoch.
    folder : Path
        Where its files lie.
    """

    project: Project
    identity: Identity
    key: ClientKey
    folder: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", absolute(self.folder))

    @classmethod
    def create(cls, file: ProjectFile, folder: Path, kits: Path) -> Provisioner:
        """Make keys, certificates and manifest of a new federation.

        Parameters
        ----------
        file : ProjectFile
            What it is to be.
        folder : Path
            New or empty folder for what the provisioner keeps.
        kits : Path
            Existing folder; the kits are folders in it, named after their parties.
        """
        identity, key = Identity.generate(), generate_keys(file.config, 0).client
        folder.mkdir(0o700, exist_ok=True)
        identity.save(folder / IDENTITY_FILE)
        key.save(folder / of_epoch(CLIENT_KEY_FILE, 0))
        authority = Authority.create(folder, days=file.days + _AUTHORITY_DAYS)
        now = int(time.time())
        server, certificate = _make_server(authority, file.hosts, file.days, folder / SERVER, kits)
        project = Project(
            name=file.name,
            serial=1,
            issued=now,
            expires=now + file.days * _DAY_SECONDS,
            config=file.config,
            epoch=0,
            key=key.fingerprint,
            authority=identity.public,
            server=server,
            sites=tuple(_make_site(authority, name, file.days, kits) for name in file.sites),
            layout=file.layout,
            base=file.base,
            server_certificate=certificate,
            task=file.task,
            storage=file.storage,
        )
        provisioner = cls(project, identity, key, folder)
        provisioner._finish(folder, kits)
        return provisioner

    @classmethod
    def load(cls, folder: Path) -> Provisioner:
        """Read a provisioner's folder.

        Raises
        ------
        KeyFileError
            If a file is missing, damaged, or does not belong to the others.
        """
        warn_of_older(folder, CLIENT_KEY_FILE)
        project, identity = Project.load(folder / PROJECT_FILE), Identity.load(folder / IDENTITY_FILE)
        if project.authority != identity.public:
            raise KeyFileError(f"{folder / IDENTITY_FILE} is not the key that signed {PROJECT_FILE}; restore a backup")
        key = load_client_key(find_file(folder, of_epoch(CLIENT_KEY_FILE, project.epoch)), project)
        return cls(project, identity, key, folder)

    def add(self, names: tuple[str, ...], changed: Path, kits: Path) -> Project:
        """Make kits of new sites, and a kit of the server whose manifest lists them.

        Parameters
        ----------
        names : tuple of str
            Names that no site of the project has or had.
        changed : Path
            Existing folder for the files of the provisioner's folder that change.
        kits : Path
            Existing folder for the kits.

        Returns
        -------
        Project
            The new manifest. It is valid as long as the one before.

        Raises
        ------
        ConfigError
            If a name cannot be given, or there would be more sites than ``max_clients``.
        """
        project, authority = self.project, Authority.load(self.folder)
        check_names(names, tuple(site.name for site in project.sites))
        check_count(len(names) + len(active_sites(project)), project.config)
        now = int(time.time())
        if now >= project.expires:
            raise ConfigError(f"project {project.name} has expired; `secagg rotate` makes kits that are valid again")
        days = -(-(project.expires - now) // _DAY_SECONDS)
        made = tuple(_make_site(authority, name, days, kits) for name in names)
        _copy_server(self.folder / SERVER, kits)
        return self._reissue(changed, kits, sites=(*project.sites, *made), issued=now)

    def remove(self, names: tuple[str, ...], changed: Path, kits: Path) -> Project:
        """Revoke sites, and make a kit of the server that refuses them; the rest is as `add`.

        Raises
        ------
        ConfigError
            If a name is not that of a site that takes part.
        """
        project = self.project
        taking_part = {site.name for site in active_sites(project)}
        for name in names:
            if name not in taking_part:
                raise ConfigError(f"site {name!r} does not take part; these do: {', '.join(sorted(taking_part))}")
        sites = tuple(replace(site, revoked=site.revoked or site.name in names) for site in project.sites)
        _copy_server(self.folder / SERVER, kits)
        return self._reissue(changed, kits, sites=sites, issued=int(time.time()))

    def rotate(self, days: int | None, changed: Path, kits: Path) -> Project:
        """Make a new HE key of the next epoch, new certificates and signing keys, and with them kits for all.

        Parameters
        ----------
        days : int or None
            How long they are valid; None: as long as the ones before were.
        changed, kits : Path
            As of `add`.

        Raises
        ------
        ConfigError
            If `days` is out of range, or they would be valid for longer than the authority of the certificates.
        """
        project, authority = self.project, Authority.load(self.folder)
        now = int(time.time())
        old = Certificate.load(Tls.load(self.folder / SERVER))
        if days is None:  # not those of the manifest, which is issued anew when sites come or go
            days = max(1, round((old.expires - old.begins) / _DAY_SECONDS))
        else:
            check_days(days)
        if now + days * _DAY_SECONDS > authority.expires:
            raise ConfigError(
                f"kits of {days} days would outlive the authority of project {project.name}, which expires on "
                f"{show_time(authority.expires)}: use fewer days, or provision a new project"
            )
        key = generate_keys(project.config, project.epoch + 1).client
        key.save(changed / of_epoch(CLIENT_KEY_FILE, key.server.epoch))
        server, certificate = _make_server(authority, old.hosts, days, changed / SERVER, kits)
        sites = tuple(site if site.revoked else _make_site(authority, site.name, days, kits) for site in project.sites)
        return replace(self, key=key)._reissue(
            changed,
            kits,
            epoch=key.server.epoch,
            key=key.fingerprint,
            server=server,
            server_certificate=certificate,
            sites=sites,
            issued=now,
            expires=now + days * _DAY_SECONDS,
        )

    def _reissue(self, changed: Path, kits: Path, **changes: object) -> Project:
        project = self.project.successor_of(**changes)
        replace(self, project=project)._finish(changed, kits)
        return project

    def _finish(self, changed: Path, kits: Path) -> None:
        """Put into the provisioner's folder, and into the kits that were made, what goes with the manifest."""
        self.project.save(changed / PROJECT_FILE, self.identity)
        for kit in kits.iterdir():
            self.project.save(kit / PROJECT_FILE, self.identity)
            with replace_file(kit / CONFIG_FILE) as file:  # whatever the umask
                file.write(to_yaml(self.project.config.to_dict(), flow=True).encode())
            if kit.name == SERVER:
                self.key.server.save(kit / SERVER_KEY_FILE)
            else:
                self.key.save(kit / CLIENT_KEY_FILE)


def _make_server(
    authority: Authority, hosts: tuple[str, ...], days: int, folder: Path, kits: Path
) -> tuple[Party, bytes]:
    """Make the server's certificate and signing key, in the provisioner's folder and in the server's kit.

    Returns
    -------
    Party, bytes
        The server, and its certificate in DER.
    """
    folder.mkdir(0o700)
    tls = authority.issue_server(hosts, name=SERVER, days=days, folder=folder)
    party = _make_identity(SERVER, tls, folder)
    _copy_server(folder, kits)
    return party, Certificate.load(tls).der


def _make_site(authority: Authority, name: str, days: int, kits: Path) -> Party:
    kit = kits / name
    kit.mkdir(0o700)
    return _make_identity(name, authority.issue_site(name, days=days, folder=kit), kit)


def _make_identity(name: str, tls: Tls, folder: Path) -> Party:
    identity = Identity.generate()
    identity.save(folder / IDENTITY_FILE)
    return Party(name, identity.public, Certificate.load(tls).fingerprint)


def _copy_server(folder: Path, kits: Path) -> None:
    (kits / SERVER).mkdir(0o700)
    for name in (IDENTITY_FILE, CA_FILE, TLS_FILE, TLS_KEY_FILE):
        shutil.copy(folder / name, kits / SERVER / name)  # with its permissions
