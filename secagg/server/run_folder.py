"""The files of a server's run folder, and what makes them last.

==============================  =======================================================================
``lock``                        held by the server that works here
``aggregate-<r>.secagg``        aggregates of the last two rounds
``scales-<r>.secagg``           where scales are measured in the round: theirs, and those of the open one
``model-<r>.secagg``            the last two stored models; round r begins from it
``round-<r>/<site>.update``     what was acknowledged of the open round, one file a site; so too ``.calibration``
``spool/``                      uploads on their way; pointers to those in the bucket (`secagg.server.pointer`)
``roster.json``                 the sites that the open stage waits for, and those that skip the round
``project.secagg``              the manifest that was served last: no earlier one is served here any more
``rounds.jsonl``                one line an attempt: `secagg.server.records`
==============================  =======================================================================

What is acknowledged survives a crash of the process and of the machine: a file's bytes are synchronised (fsync) before
it gets its name, and then the folder that holds the name. A rename puts the file under its new name at once or not at
all; should the old name come back after a power failure, it is a leftover of the spool, which is never added. All
this rests on a file system and a disk that keep what they have synchronised.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import secagg

from ..errors import ConfigError, StorageError
from ..storage.files import absolute, os_errors, replace_file, synchronise
from ..storage.locks import open_locked
from ..wire.header import SUMS
from .pointer import Pointer, stored_nbytes

_STORED = {kind: re.compile(rf"{kind}-(\d+)\.secagg") for kind in ("aggregate", "scales", "model")}
_STAGES = {stage: stage for stage in SUMS}
_ROUND = re.compile(r"round-(\d+)")
_TEMPORARY = re.compile(r"\.(aggregate|scales|model)-\d+\.secagg\..*|\.(roster\.json|project\.secagg)(\..*)?")

#: In the spool, of pointers on their way, and of those to what is to be deleted from the bucket.
POINTER_SUFFIX, _DROPPED_SUFFIX = ".deposit", ".dropped"

PROJECT_FILE = "project.secagg"
ROSTER_FILE = "roster.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredRoster:
    """Whom the open stage of a round waited for, when that was written down, and who of them skipped the round."""

    stage: str
    attempt: int
    sites: tuple[str, ...]
    skipped: tuple[str, ...]


def stored(folder: Path, kind: str) -> dict[int, Path]:
    """Return the files of aggregates, scales or models (`kind`) in a run folder by rounds; none if it is not there.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    if not folder.exists():
        return {}
    matches = ((_STORED[kind].fullmatch(path.name), path) for path in folder.iterdir())
    return {int(match[1]): path for match, path in matches if match}


class RunFolder:
    """A folder that one server at a time works in, from the construction to `close`.

    Parameters
    ----------
    path : path
        Made if it does not exist.

    Raises
    ------
    ConfigError
        If it cannot be used, or another server works there.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        with os_errors(ConfigError, f"cannot use the run folder {path}"):
            self.path = absolute(path)
        self.spool = self.path / "spool"
        self.dropping = threading.Event()  # set when something is to be deleted from the bucket
        with ExitStack() as held, os_errors(ConfigError, f"cannot use the run folder {self.path}"):
            if self.path.exists() and not self.path.is_dir():
                raise ConfigError(f"cannot use the run folder {self.path}: it is a file")
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.spool.mkdir(mode=0o700, exist_ok=True)
            busy = ConfigError(f"another server works in the run folder {self.path}; give each its own")
            held.enter_context(open_locked(self.path / "lock", os.O_WRONLY | os.O_CREAT, busy))
            for leftover in self.path.iterdir():
                if _TEMPORARY.fullmatch(leftover.name):
                    leftover.unlink()
            for leftover in self.spool.glob(f".*{POINTER_SUFFIX}.*"):
                leftover.unlink()
            self._held = held.pop_all()

    def close(self) -> None:
        """Let another server in."""
        self._held.close()

    def hide(self, text: str) -> str:
        """Return a message without where the folder lies: whoever calls a server need not know."""
        return text.replace(f"{self.path}/", "")

    def stored(self, kind: str) -> dict[int, Path]:
        """Return the files of the stored aggregates, scales or models (`kind`), by their rounds."""
        return stored(self.path, kind)

    def path_of(self, kind: str, round: int) -> Path:
        """Return where aggregate, scales or model of a round lie."""
        return self.path / f"{kind}-{round}.secagg"

    def upload_of(self, round: int, site: str, kind: str = "update") -> Path:
        """Return where the update or calibration of a site lies once it is acknowledged."""
        return self._round_folder(round) / f"{site}.{kind}"

    def uploads(self, round: int, kind: str = "update") -> dict[str, Path]:
        """Return the files of the updates or calibrations of a round by their sites, in the order of their names."""
        files = sorted(self._round_folder(round).glob(f"*.{kind}"))
        return {path.name.removesuffix(f".{kind}"): path for path in files}

    def open_round(self, round: int) -> None:
        """Make the folder of what is acknowledged of a round, if it is not there.

        Raises
        ------
        StorageError
            If it cannot be made.
        """
        with storing(f"the folder of round {round}"):
            self._round_folder(round).mkdir(mode=0o700, exist_ok=True)
            synchronise(self.path)

    def drop_rounds(self, but: int) -> None:
        """Remove what was acknowledged of all rounds but one: it is in their aggregates."""
        for path in self.path.iterdir():
            match = _ROUND.fullmatch(path.name)
            if match and int(match[1]) != but:
                for file in path.iterdir():
                    self.discard(file)
                synchronise(self.spool)
                shutil.rmtree(path, ignore_errors=True)

    def discard(self, path: Path) -> None:
        """Remove a file, if it is there; what it points to in the bucket is deleted by and by. `OSError`."""
        pointer = Pointer.load(path)
        if pointer is None:
            path.unlink(missing_ok=True)
            return
        os.rename(path, self.spool / f"{pointer.url.rpartition('/')[2]}{_DROPPED_SUFFIX}")
        self.dropping.set()

    def dropped(self) -> list[Path]:
        """Return the pointers to what is to be deleted from the bucket."""
        return sorted(self.spool.glob(f"*{_DROPPED_SUFFIX}"))

    def keep_upload(self, part: Path, round: int, site: str, kind: str) -> None:
        """Give what was received, already synchronised, its name in the folder of the round; see `synchronise_round`.

        Raises
        ------
        StorageError
            If that failed.
        """
        with storing(f"the {kind} of {site!r}"):
            os.rename(part, self.upload_of(round, site, kind))

    def take_back(self, part: Path, round: int, site: str, kind: str) -> None:
        """Undo `keep_upload` of what nobody was told of yet. Errors as of `keep_upload`."""
        with storing(f"the {kind} of {site!r}"), suppress(FileNotFoundError):
            os.rename(self.upload_of(round, site, kind), part)

    def drop(self, round: int, files: Iterable[Path]) -> None:
        """Remove acknowledged files of a round, and its scales; they are gone from here on.

        Raises
        ------
        StorageError
            If that failed.
        """
        with os_errors(StorageError, f"the server could not remove what was uploaded to round {round}"):
            for path in files:
                self.discard(path)
            synchronise(self.spool)
            synchronise(self._round_folder(round))
            synchronise(self.path)

    def synchronise_round(self, round: int) -> None:
        """Make the names of what was uploaded to a round last: it survives from here on. Errors as of `keep_upload`.

        A round whose folder is gone has ended: what was in it is in the aggregate, which was synchronised.
        """
        with storing(f"the uploads of round {round}"), suppress(FileNotFoundError):
            synchronise(self._round_folder(round))

    def keep_model(self, part: Path, round: int) -> None:
        """Give a received model, already synchronised, its name; it survives. Errors as of `keep_upload`."""
        target = self.path_of("model", round)
        with storing(f"the model of round {round}"):
            os.rename(part, target)
            with _removed_if_unsure(target):
                synchronise(self.path)

    def save_sum(self, summed: secagg.Update) -> None:
        """Write an aggregate or scales; they survive from here on. Errors as of `keep_upload`."""
        target = self.path_of(summed.header.kind, summed.header.round)
        with _removed_if_unsure(target):
            summed.save(target)

    def prune(self, kind: str, kept: Iterable[int]) -> None:
        """Remove the aggregates, scales or models of other rounds than those to be kept."""
        stored = self.stored(kind)
        for round in stored.keys() - set(kept):
            stored[round].unlink(missing_ok=True)

    def save_roster(self, round: int, roster: StoredRoster) -> None:
        """Write down whom the open stage waits for, and who of them skips the round; errors as of `keep_upload`."""
        data = {"round": round, **asdict(roster)}
        self._replace(ROSTER_FILE, json.dumps(data).encode())

    def save_project(self, manifest: bytes) -> None:
        """Write down the signed manifest that is served from now on; errors as of `keep_upload`."""
        self._replace(PROJECT_FILE, manifest)

    def load_roster(self, round: int) -> StoredRoster | None:
        """Return the roster as written down; None if it is not there, or of an earlier round.

        None, and a warning in the log, also if it cannot be read, or is of a later round: its aggregate is lost.
        """
        path = self.path / ROSTER_FILE
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            written = int(data["round"])
            sites, skipped = (tuple(map(str, data[key])) for key in ("sites", "skipped"))
            roster = StoredRoster(_STAGES[data["stage"]], int(data["attempt"]), sites, skipped)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning(
                "%s cannot be read, its attempt and roster are left out: %s: %s",
                path,
                type(error).__name__,
                error,
                extra={"event": "roster_left_out", "round": round, "error": type(error).__name__},
            )
            return None
        if written > round:
            log.warning(
                "%s is of round %d, the stored aggregates lead to round %d only: restore the run folder from a backup, "
                "if one of them is missing",
                path,
                written,
                round,
                extra={"event": "roster_left_out", "round": round},
            )
        return roster if written == round else None

    def used(self) -> int:
        """Return the bytes of all files, and of what lies in the bucket; of uploads on their way those to come, too."""
        folders = [self.path, self.spool, *(path for path in self.path.iterdir() if _ROUND.fullmatch(path.name))]
        return sum(map(_files_nbytes, folders))

    def free(self) -> int:
        """Return the bytes that the file system has left for us."""
        state = os.statvfs(self.path)
        return state.f_bavail * state.f_frsize

    def _replace(self, name: str, data: bytes) -> None:
        with replace_file(self.path / name, 0o600) as file:
            file.write(data)

    def _round_folder(self, round: int) -> Path:
        return self.path / f"round-{round}"


def _files_nbytes(folder: Path) -> int:
    nbytes = 0
    with suppress(FileNotFoundError), os.scandir(folder) as entries:  # a round may end in this moment
        for entry in entries:
            with suppress(FileNotFoundError):
                nbytes += stored_nbytes(Path(entry.path)) if entry.is_file(follow_symlinks=False) else 0
    return nbytes


@contextmanager
def _removed_if_unsure(path: Path) -> Iterator[None]:
    """Remove a file whose name may not last, as if it had never been stored."""
    try:
        yield
    except (OSError, StorageError):
        with suppress(OSError):
            path.unlink()
        raise


def storing(what: str) -> AbstractContextManager[None]:
    """Turn a failure to store something into `StorageError`, or `QuotaError` if the disk is full."""
    return os_errors(StorageError, f"the server could not store {what}")
