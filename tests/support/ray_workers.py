"""What tests change in the workers of a Ray cluster: Ray calls one of these functions before the first task."""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import secagg
from secagg.integrations import ray as integration
from secagg.storage import objects

#: Of each read.
SECONDS = 0.2


def slow() -> None:
    """Let every read take time, and note it in a file of the folder ``SECAGG_TEST_READS``; see `Hold`."""
    read, notes = objects.read, Path(os.environ["SECAGG_TEST_READS"]) / str(os.getpid())

    def slowly(pinned: objects.Pinned, offset: int, nbytes: int) -> bytes:
        time.sleep(SECONDS)
        while name := _held(notes.parent, offset):
            notes.with_suffix(name).touch()
            time.sleep(0.02)
        with notes.open("a") as file:
            file.write(f"{Path(pinned.url).name} {offset} {nbytes}\n")
        return read(pinned, offset, nbytes)

    objects.read = slowly


def _held(folder: Path, offset: int) -> str:
    """The name of the hold that a read has to wait for; empty if there is none."""
    for path in folder.glob("*.hold"):
        with suppress(FileNotFoundError):
            if offset >= int(path.read_text()):
                return f".{path.stem}"
    return ""


class Hold:
    """Lets slow workers wait with reads at an offset and behind, those that begin after it was made.

    Parameters
    ----------
    folder : Path
        Where they note what they read.
    offset : int
        Of the first read that waits.
    """

    def __init__(self, folder: Path, offset: int) -> None:
        self._path = folder / f"{secrets.token_hex(8)}.hold"
        self._path.write_text(str(offset))

    @property
    def workers(self) -> set[int]:
        """The processes that have waited, or do."""
        return {int(path.stem) for path in self._path.parent.glob(f"*.{self._path.stem}")}

    def release(self) -> None:
        """Let all go on."""
        self._path.unlink(missing_ok=True)


def older() -> None:
    """Have another version of secagg."""
    integration.version = lambda name: "0.1.0"


def without_secagg() -> None:
    """Have Ray, and not what a task is made of."""
    sys.modules["secagg.integrations.ray"] = None  # type: ignore[assignment]


def without_s3fs() -> None:
    """Have fsspec, and not what it needs for S3."""
    sys.modules["s3fs"] = None  # type: ignore[assignment]


def environment(hook: str, folder: Path | None = None) -> dict[str, Any]:
    """What `ray.init` takes as ``runtime_env``, for one of the functions above."""
    paths = [str(Path(__file__).parent), str(Path(secagg.__file__).parents[1])]
    variables = {"PYTHONPATH": os.pathsep.join(paths)}
    if folder is not None:
        folder.mkdir(exist_ok=True)
        variables["SECAGG_TEST_READS"] = str(folder)
    return {"env_vars": variables, "worker_process_setup_hook": f"ray_workers.{hook}"}


def reads(folder: Path) -> list[tuple[str, int, int]]:
    """The object, offset and size of what was read slowly so far."""
    notes = [path for path in folder.iterdir() if path.name.isdigit()]
    lines = [line.split() for path in notes for line in path.read_text().splitlines()]
    return [(name, int(offset), int(nbytes)) for name, offset, nbytes in lines]


@contextmanager
def joined(address: str, hook: str, folder: Path | None = None) -> Iterator[None]:
    """This process as a driver whose workers begin with one of the functions above."""
    import ray

    ray.init(address, runtime_env=environment(hook, folder), log_to_driver=False, logging_level="ERROR")
    try:
        yield
    finally:
        ray.shutdown()
