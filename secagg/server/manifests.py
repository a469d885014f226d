"""Under which manifest a server adds: a sum belongs to one, and a newer one serves from the next round on.

What a newer kit of the server does to the open round, if something under the manifest before it is acknowledged there,
a calibration, scales or an update:

=====================================  =================================================================
it revokes a site                      the round is void: it begins anew under the newer manifest, at once,
                                       with a calibration if it has one
it revokes nobody new                  the round goes on as it is; the newer manifest serves from the next
it is of another epoch                 what is under the old key is left out
=====================================  =================================================================

Otherwise the newer manifest serves at once. Whichever serves is on the disk before anything is acknowledged under it,
so that the next server, which may have a newer one still, can go on under it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import secagg

from ..errors import SecAggError, StorageError, TransportError
from .pointer import open_upload
from .run_folder import RunFolder
from .stored import served_project

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Manifests:
    """The manifest that a round is under, and the one that serves after it.

    Parameters
    ----------
    project : secagg.Project or None
        Who takes part in the round; None: whoever calls.
    later : secagg.Project, optional
        The server's newer one, from the next round on.
    since : int
        That round, if there is one.
    """

    project: secagg.Project | None
    later: secagg.Project | None = None
    since: int = 0

    def following(self) -> Manifests:
        """Return those of the next round."""
        return Manifests(self.later or self.project)


@dataclass(frozen=True)
class Void:
    """What is acknowledged of an open round that is void, in which stage, and the sites that have been revoked since.

    `uploads` are the updates, or the calibrations while there are no scales, by their sites; `files` all that is void.
    """

    stage: str
    uploads: dict[str, Path]
    files: tuple[Path, ...]
    revoked: tuple[str, ...]


def choose(folder: RunFolder, project: secagg.Project | None) -> tuple[Manifests, Void | None]:
    """Return the manifests of the open round of a run folder, given that of the server's kit, and what is void in it.

    Nothing is written, so that a server that dies at any moment finds the same again.

    Raises
    ------
    TransportError
        If something of the round lies in the bucket, which cannot be reached.
    """
    served = None if project is None else served_project(folder.path)
    if project is None or served is None:
        return Manifests(project), None
    round = max(folder.stored("aggregate"), default=-1) + 1
    scales, earlier = folder.path_of("scales", round), dict[Path, bytes | None]()
    uploads = {kind: folder.uploads(round, kind) for kind in ("update", "calibration")}
    stage = "calibration" if uploads["calibration"] and not scales.exists() else "update"
    for path in (*uploads["update"].values(), scales, *uploads["calibration"].values()):
        header = _header_of(path)
        if header is not None and header.epoch == project.epoch and header.manifest != project.digest:
            earlier[path] = header.manifest
    revoked = _revoked(project) - _revoked(served)
    if not revoked and any(map(project.voids, earlier.values())):  # a server died while it voided the round
        revoked = _revoked(project)
    if earlier and revoked:
        void = {site: path for site, path in uploads[stage].items() if path in earlier}
        return Manifests(project), Void(stage, void, tuple(earlier), tuple(sorted(revoked)))
    if served.digest in earlier.values():
        return Manifests(served, project, round + 1), None
    return Manifests(project), None


class Keeper:
    """Writes down the manifest that serves: whom it has revoked stays revoked."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._kept: secagg.Project | None = None

    def keep(self, project: secagg.Project | None) -> None:
        """Write a manifest down if it is a later one than lies there.

        Raises
        ------
        StorageError
            If that failed.
        """
        if project is None or project == self._kept:
            return
        served = served_project(self._folder.path)
        if served is None or served.serial < project.serial:
            self._folder.save_project(project.signed)
        self._kept = project

    def try_to_keep(self, project: secagg.Project | None) -> None:
        """Do so if it can be done: a full disk must not keep sites from what is there."""
        try:
            self.keep(project)
        except StorageError as error:
            log.error("%s", error, extra={"event": "project_not_stored", "error": type(error).__name__})


def _header_of(path: Path) -> secagg.Header | None:
    """Return the header of what was acknowledged; None of what is damaged, and left out later."""
    try:
        with open_upload(path) as update:
            return update.header
    except TransportError:
        raise
    except SecAggError:
        return None


def _revoked(project: secagg.Project) -> set[str]:
    return {site.name for site in project.sites if site.revoked}
