"""A power failure: what a folder may look like after it.

`Recorder` runs in the process that is to die. It notes what fsync has made last: the contents of files, and the names
in folders. `fail` then makes the folder anew: whatever was synchronised is there as it was, and of each later change to
a name, and of each later written page of a file, one can or cannot have reached the disk.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import stat
from itertools import count
from pathlib import Path
from typing import Any

PAGE = 4096

_STATE = "state.json"

#: Names in a folder; a folder in it is a name, too.
Names = dict[str, int]


class Recorder:
    """Notes what lasts.

    Parameters
    ----------
    folder : Path
        What the power failure strikes. All that is in it at first lasts.
    shadow : Path
        Empty folder for the notes.
    """

    def __init__(self, folder: Path, shadow: Path) -> None:
        self._folder, self._shadow = folder, shadow
        self._numbers = count()
        self._contents: dict[int, str] = {}
        self._names: dict[str, Names] = {}
        self._held: list[int] = []  # open files: so long no new one gets the inode number of an old one
        for path in (folder, *folder.rglob("*")):
            self._note(path)

    def synchronised(self, handle: int) -> None:
        """Note that the file or folder behind a descriptor lasts as it is now."""
        self._note(Path(os.readlink(f"/proc/self/fd/{handle}")))

    def save(self) -> None:
        """Write the notes; what is synchronised after that is lost."""
        (self._shadow / _STATE).write_text(json.dumps({"contents": self._contents, "names": self._names}))

    def _note(self, path: Path) -> None:
        number = path.stat().st_ino
        if number not in self._contents:
            self._held.append(os.open(path, os.O_RDONLY))
        if path.is_dir():
            self._names[str(path.relative_to(self._folder))] = _names(path)
            return
        copy = self._contents.get(number) or str(next(self._numbers))
        shutil.copyfile(path, self._shadow / copy)
        self._contents[number] = copy


def fail(folder: Path, shadow: Path, rng: random.Random, kept: float) -> None:
    """Let a folder be as after a power failure.

    Parameters
    ----------
    folder : Path
        The folder; nobody uses it any more.
    shadow : Path
        The notes of the `Recorder`.
    rng : Random
        Decides what reached the disk.
    kept : float
        With which probability each thing did that was not synchronised. 0 is the worst case that fsync allows.
    """
    state = json.loads((shadow / _STATE).read_text())
    contents = {int(number): shadow / name for number, name in state["contents"].items()}
    current: dict[int, Path] = {path.stat().st_ino: path for path in folder.rglob("*") if path.is_file()}
    after = folder.with_name(f"{folder.name}.after")
    _Failure(folder, state["names"], contents, current, rng, kept).make(Path(), after)
    shutil.rmtree(folder)
    after.rename(folder)


class _Failure:
    def __init__(
        self,
        folder: Path,
        names: dict[str, Names],
        contents: dict[int, Path],
        current: dict[int, Path],
        rng: random.Random,
        kept: float,
    ) -> None:
        self._folder, self._names, self._contents, self._current = folder, names, contents, current
        self._rng, self._kept = rng, kept

    def make(self, relative: Path, target: Path) -> None:
        """Make a folder as it is after the failure."""
        target.mkdir(mode=0o700)
        lasting = self._names.get(str(relative), {})
        now = _names(self._folder / relative) if (self._folder / relative).is_dir() else {}
        for name in sorted(lasting.keys() | now.keys()):
            number = (now if self._survives() else lasting).get(name)
            if number is None:
                continue
            if str(relative / name) in self._names or (self._folder / relative / name).is_dir():
                self.make(relative / name, target / name)
            else:
                (target / name).write_bytes(self._content(number))

    def _content(self, number: int) -> bytes:
        lasting = self._contents[number].read_bytes() if number in self._contents else b""
        now = self._current[number].read_bytes() if number in self._current else lasting
        if now == lasting:
            return lasting
        pages: list[bytes] = []
        size = len(now) if self._survives() else len(lasting)
        for start in range(0, size, PAGE):
            page = (now if self._survives() else lasting)[start : start + PAGE]
            pages.append(page.ljust(min(PAGE, size - start), b"\0"))  # what was never written reads as zeros
        return b"".join(pages)

    def _survives(self) -> bool:
        return self._rng.random() < self._kept


def _names(folder: Path) -> dict[str, Any]:
    entries = ((entry.name, entry.stat(follow_symlinks=False)) for entry in os.scandir(folder))
    return {name: state.st_ino for name, state in entries if stat.S_ISREG(state.st_mode) or stat.S_ISDIR(state.st_mode)}
