"""Changes of a folder that happen whole or not at all, also if the machine stops in the middle.

New files are collected in a folder inside it. One rename commits them: until then nothing has changed, from then on
they move to their places, and what interrupts that is made up for by the next change.
"""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

from ..errors import ConfigError, StorageError
from .files import os_errors, synchronise
from .locks import locked_folder
from .signals import undisturbed

#: Folders with this prefix are what interrupted commands left; the next one removes them.
PREFIX = ".secagg-staging-"
_YOUNG_SECONDS = 5.0
_COMMITTED = ".secagg-staged"
_FILES = "files"
_REMOVED = "removed"


class Stage:
    """The change that `change_folder` collects.

    Attributes
    ----------
    folder : Path
        Files for ``<folder>/a/b`` are written to ``stage.folder / "a/b"``.
    aside : Path
        A folder for what the change is made from, and which goes with its end.
    """

    def __init__(self, room: Path) -> None:
        self._room = room
        self.folder, self.aside = room / _FILES, room / "aside"
        self.folder.mkdir()
        self.aside.mkdir(0o700)

    def remove(self, name: str) -> None:
        """Note a file directly in the folder that goes; it may be missing."""
        with (self._room / _REMOVED).open("a", encoding="utf-8") as file:
            file.write(f"{name}\n")


@contextmanager
def change_folder(folder: Path) -> Iterator[Stage]:
    """Collect changes of an existing folder; they happen when the block ends without an error.

    Raises
    ------
    StorageError
        If the folder cannot be written, or another command is changing it.
    """
    with os_errors(StorageError, f"cannot change {folder}"), _locked(folder):
        finish(folder)
        _sweep(folder, 0)
        room = Path(mkdtemp(prefix=PREFIX, dir=folder))  # made with 0o700
        try:
            with _locked(room):
                yield (stage := Stage(room))
                shutil.rmtree(stage.aside)
                _sync(room)
                with undisturbed():
                    room.rename(folder / _COMMITTED)
                    finish(folder)
        except BaseException:
            shutil.rmtree(room, ignore_errors=True)
            raise


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Make a folder, readable by its owner alone, that appears when the block ends without an error.

    Yields
    ------
    Path
        Where to write its files.

    Raises
    ------
    ConfigError
        If there is such a file or folder already: nothing is overwritten.
    StorageError
        If it cannot be written.
    """
    if os.path.lexists(folder):
        raise ConfigError(f"{folder} exists; name a new folder, nothing is overwritten")
    with os_errors(StorageError, f"cannot make {folder}"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder.parent, _YOUNG_SECONDS)
        with TemporaryDirectory(prefix=PREFIX, dir=folder.parent) as room, _locked(Path(room)):  # made with 0o700
            made = Path(room, "new")
            made.mkdir(0o700)
            yield made
            _sync(made)
            made.rename(folder)
        synchronise(folder.parent)


def is_committed(folder: Path) -> bool:
    """Return whether a change of the folder was interrupted after it had begun to happen."""
    return (folder / _COMMITTED).exists()


def is_empty(folder: Path) -> bool:
    """Return whether a folder holds nothing, or only what an interrupted change left before it began to happen."""
    return all(path.name.startswith(PREFIX) for path in folder.iterdir())


def finish(folder: Path) -> None:
    """Carry out the change that was committed but interrupted, if there is one. The caller holds the folder's lock."""
    committed = folder / _COMMITTED
    if not committed.exists():
        return
    with suppress(FileNotFoundError):
        for name in (committed / _REMOVED).read_text(encoding="utf-8").splitlines():
            (folder / name).unlink(missing_ok=True)
    files = committed / _FILES
    # What has been moved is not found here again: doing it twice is as good as once.
    for path in sorted(path for path in files.rglob("*") if not path.is_dir()):
        target = folder / path.relative_to(files)
        target.parent.mkdir(0o700, parents=True, exist_ok=True)
        path.replace(target)
        synchronise(target.parent)
    shutil.rmtree(committed)
    synchronise(folder)


def _sweep(folder: Path, age: float) -> None:
    """Remove what commands of this user that were killed left in a folder: secret files, perhaps.

    Those at work hold a lock, but for the moment after they have made theirs: `age` is in seconds.
    """
    for path in folder.glob(f"{PREFIX}*"):
        with suppress(OSError, StorageError):
            state = path.lstat()
            old = time.time() - state.st_mtime >= age
            if stat.S_ISDIR(state.st_mode) and state.st_uid == os.geteuid() and old:
                with _locked(path):
                    shutil.rmtree(path)


def _locked(folder: Path) -> AbstractContextManager[None]:
    return locked_folder(folder, StorageError(f"another command is changing {folder}; wait for its end"))


def _sync(folder: Path) -> None:
    """Bring the folder, and all that is in it, to the disk."""
    for path in (*folder.rglob("*"), folder):
        synchronise(path)
