"""What ``secagg doctor`` looks at without a network: the files of a kit, the clock, the backend, the disk."""

from __future__ import annotations

import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..backends.registry import available_backends
from ..config import Config
from ..errors import (
    BackendError,
    BackendUnavailableError,
    KeyFileError,
    StorageError,
    show_size,
    show_time,
)
from ..scheme.codec import codec_for
from ..scheme.ring import KERNELS
from ..setup.disk import LEAST_FREE_NBYTES, round_nbytes
from ..setup.trial import Trial
from ..storage.staging import is_committed
from ..trust import Certificate, Tls
from ..trust.identity import Identity
from ..trust.key import ClientKey
from ..trust.kit import active_sites, find_owner, load_client_key, load_server_key
from ..trust.kit_files import (
    CLIENT_KEY_FILE,
    CONFIG_FILE,
    IDENTITY_FILE,
    PROJECT_FILE,
    SERVER_FILES,
    SERVER_KEY_FILE,
    SITE_FILES,
    advice_of_older,
    find_file,
    is_secret,
    is_server_kit,
    older_files,
)
from ..trust.parties import Party
from ..trust.project import EXPIRES_SOON_SECONDS, Project
from ..ui.findings import Doubt, Finding, examine
from ..ui.units import show_count

#: Values of the update with which the backend is tried.
_TRIAL_VALUES = 64


def check_kit(folder: Path, now: float | None = None) -> Iterator[Finding]:
    """Yield what is found in a kit's folder, in the order in which one thing rests on another.

    Parameters
    ----------
    folder : Path
        Kit of a site or of the server.
    now : float, optional
        Seconds since 1970, in place of the clock.
    """
    now = time.time() if now is None else now
    yield examine("files", lambda: _files(folder))
    yield examine("permissions", lambda: _permissions(folder))
    manifest = examine("manifest", lambda: _manifest(folder))
    yield manifest
    if manifest.level == "FAIL":
        return  # everything else is held against it
    project = Project.load(folder / PROJECT_FILE)
    yield examine("validity", lambda: _validity(project, now))
    identity = examine("signing key", lambda: _identity(folder, project))
    yield identity
    if identity.level != "FAIL":
        party = _party(folder, project)
        yield examine("certificate", lambda: _certificate(folder, party, now))
    yield examine("HE key", lambda: _key(folder, project))
    yield examine("configuration", lambda: _config(folder, project))
    yield examine("min_clients", lambda: _quorum(project))
    yield examine("backend", lambda: _backend(folder, project))


def check_disk(folder: Path, project: Project, server: bool) -> str:
    """Say whether the disk of a folder has room for what a round takes; `folder` may not exist yet."""
    place = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(place).free
    rounds = round_nbytes(project, server=server)
    least = LEAST_FREE_NBYTES if rounds is None else rounds
    if free < least:
        raise StorageError(f"{show_size(free)} free at {place}, rounds take {show_size(least)}: make room")
    if free < LEAST_FREE_NBYTES:
        raise Doubt(f"{show_size(free)} free at {place}, rounds take about {show_size(least)}: keep more for the rest")
    return f"{show_size(free)} free at {place}, rounds take about {show_size(least)}"


def _files(folder: Path) -> str:
    if is_committed(folder):
        raise KeyFileError(f"an unpacking of {folder} was interrupted; carry it out again")
    server = is_server_kit(folder)
    if server and (any(folder.glob("he-client*.key")) or older_files(folder, CLIENT_KEY_FILE)):
        raise KeyFileError(
            f"{folder} has {CLIENT_KEY_FILE} beside {SERVER_KEY_FILE}: the server must never hold the HE key; remove "
            "it, and have the key rotated"
        )
    files = SERVER_FILES if server else SITE_FILES
    missing = sorted(name for name in files if not find_file(folder, name).is_file())
    if missing:
        raise KeyFileError(f"{folder} lacks {', '.join(missing)}; unpack the kit again")
    older = older_files(folder, SERVER_KEY_FILE if server else CLIENT_KEY_FILE)
    if older:
        raise Doubt(advice_of_older(older))
    return f"kit of {'the server' if server else 'a site'}, complete"


def _permissions(folder: Path) -> str:
    for path in folder.iterdir():
        mode = stat.S_IMODE(path.lstat().st_mode)
        if path.name in SITE_FILES | SERVER_FILES or is_secret(path.name):
            if is_secret(path.name) and mode & 0o077:
                raise KeyFileError(f"{path} has mode {mode:04o}, others can read it: chmod 600 {path}")
            if mode & 0o022:
                raise KeyFileError(f"{path} has mode {mode:04o}, others can change it: chmod 644 {path}")
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & 0o022:
        raise KeyFileError(f"{folder} has mode {mode:04o}, others can replace its files: chmod 700 {folder}")
    if mode & 0o077:
        raise Doubt(f"{folder} has mode {mode:04o}: chmod 700 {folder}")
    return "secret files are for their owner alone"


def _manifest(folder: Path) -> str:
    project = Project.load(folder / PROJECT_FILE)
    active = len(active_sites(project))
    removed = f" and {len(project.sites) - active} removed" if active < len(project.sites) else ""
    return f"project {project.name}, serial {project.serial}, {show_count(active, 'site')}{removed}; its signature fits"


def _validity(project: Project, now: float) -> str:
    project.check_time(now)
    if project.expires - now < EXPIRES_SOON_SECONDS:
        raise Doubt(f"until {show_time(project.expires)} only; have it renewed by `secagg rotate`")
    return f"until {show_time(project.expires)}"


def _party(folder: Path, project: Project) -> Party:
    parties = (project.server,) if is_server_kit(folder) else project.sites
    return find_owner(folder / IDENTITY_FILE, parties, Identity.load(folder / IDENTITY_FILE))


def _identity(folder: Path, project: Project) -> str:
    party = _party(folder, project)
    if party != project.server:
        project.site(party.name)
    return f"that of {party.name} in the manifest"


def _certificate(folder: Path, party: Party, now: float) -> str:
    certificate = Certificate.load(Tls.load(folder))
    if certificate.fingerprint != party.certificate:
        raise KeyFileError(
            f"the certificate of {certificate.name} ({certificate.fingerprint[:16]}…) is not that which the manifest "
            f"gives {party.name} ({party.certificate[:16]}…); unpack the newest kit"
        )
    if now < certificate.begins:
        raise KeyFileError(f"not valid before {show_time(certificate.begins)}; set the clock of this machine by NTP")
    if now >= certificate.expires:
        raise KeyFileError(f"expired on {show_time(certificate.expires)}; have it renewed by `secagg rotate`")
    if certificate.expires - now < EXPIRES_SOON_SECONDS:
        raise Doubt(f"until {show_time(certificate.expires)} only; have it renewed by `secagg rotate`")
    hosts = f", for {', '.join(certificate.hosts)}" if certificate.for_server else ""
    return (
        f"of {certificate.name}{hosts}, until {show_time(certificate.expires)}; issued by the authority, its key fits"
    )


def _key(folder: Path, project: Project) -> str:
    if is_server_kit(folder):
        load_server_key(find_file(folder, SERVER_KEY_FILE), project)
        return f"ring and fingerprint of epoch {project.epoch}, that of the manifest; no secret"
    load_client_key(find_file(folder, CLIENT_KEY_FILE), project)
    return f"of epoch {project.epoch}, that of the manifest"


def _config(folder: Path, project: Project) -> str:
    if Config.load(folder / CONFIG_FILE) != project.config:
        raise KeyFileError(
            f"{folder / CONFIG_FILE} is not the manifest's: unpack the kit again, the sites have another"
        )
    return f"that of the manifest: {project.config.lib} {project.config.params.scheme}"


def _quorum(project: Project) -> str:
    aggregation = project.config.aggregation
    count = len(active_sites(project))
    if count < aggregation.min_clients:
        raise Doubt(f"{count} sites take part, {aggregation.min_clients} are needed: have sites added")
    if aggregation.weakness:
        raise Doubt(aggregation.weakness)
    return f"{aggregation.min_clients} of {count} sites are needed for a round"


def _backend(folder: Path, project: Project) -> str:
    if is_server_kit(folder):
        if KERNELS != "cython":
            raise Doubt(f"the kernels are {KERNELS}: right, but slow; install a wheel, or with a C compiler")
        return f"none is needed; kernels: {KERNELS}"
    info = available_backends()[project.config.lib]
    if not info.available:
        raise BackendUnavailableError(info.problem or f"{project.config.lib} is not available")
    _try_backend(project.config, load_client_key(find_file(folder, CLIENT_KEY_FILE), project))
    return f"{project.config.lib} {info.version or ''} encrypts, adds and decrypts; kernels: {KERNELS}"


def _try_backend(config: Config, key: ClientKey) -> None:
    """Hold the mean of two small updates, encrypted and decrypted, against the exact one."""
    trial = Trial(config, key)
    states = [np.linspace(low, trial.bound, _TRIAL_VALUES, dtype=np.float32) for low in (-trial.bound, 0.0)]
    mean = trial.sites[0].decrypt(trial.aggregate(states, trial.scales(states)))["trial"]
    error = np.abs(mean - np.sum(states, axis=0, dtype=np.float64) / len(states)).max()
    calibrated = trial.config.aggregation.calibrated
    # A calibrated bound is the power of √2 above the largest weighted value.
    bound, unit = (2 * trial.weight * trial.bound, trial.weight) if calibrated else (trial.bound, 1.0)
    allowed = codec_for(config.params, trial.config.aggregation).mean_error(2, 2 * unit, bound)
    if not error <= allowed + np.spacing(np.float32(trial.bound)):
        raise BackendError(f"{config.lib} returns sums that are {error:.2g} off: install another version of it")
