"""The environment of the peers: made once by the command, kept, and never used half-made.

What they need would fight with what is installed where the command runs: NVFlare's HE wants an old TenSEAL. secagg
itself, and Pyfhel if it is installed, are links to what runs here, renewed by each command.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from ...errors import BackendUnavailableError, ConfigError, StorageError
from ...setup.progress import Progress, silent
from ...storage.files import os_errors, replace_file
from ...storage.locks import open_locked

#: What is installed, as pip takes it. NVFlare's extra pins TenSEAL 0.3.15, where Python is older than 3.13.
PINS = (
    "numpy==2.4.6",
    "PyYAML==6.0.3",
    "blake3==1.0.11",
    "cryptography==50.0.2",
    "zstandard==0.25.0",
    "nvflare[HE]==2.9.0",
    "tenseal==0.3.18; python_version >= '3.13'",
    "flwr==1.42.0",
    "protobuf==6.33.6",
    "seal-python==4.4.0",
)
#: Published as source only: built by ``make pyfhel``, and kept where that keeps it.
PYFHEL = "3.5.0"

_MARK = "secagg-bench-peers"  # holds the name of what is made; nothing before that
_PIP = ("-m", "pip", "--disable-pip-version-check", "--no-input")
_TAIL = 5


@contextmanager
def environment(folder: Path | None = None, progress: Progress = silent) -> Iterator[Path]:
    """Yield the interpreter of the environment, which is made if it is not there.

    Nobody else can use it meanwhile: what is linked into it is the code of whoever runs.

    Parameters
    ----------
    folder : Path, optional
        Where it is, or is to be; by default, in the user's cache.
    progress : callable, optional
        Shows how far it is.

    Raises
    ------
    BackendUnavailableError
        If it cannot be made: there is no network, say.
    ConfigError
        If the folder is something else, or another command is using it.
    StorageError
        If it cannot be written.
    """
    name = _name()
    folder = (folder or cache() / f"bench-peers-{name}").absolute()
    with _alone(folder):
        with os_errors(StorageError, f"cannot make {folder}"):
            python = _interpreter(folder, name, progress)
        yield python


def _interpreter(folder: Path, name: str, progress: Progress) -> Path:
    mark, python = folder / _MARK, folder / "bin" / "python"
    if mark.is_file() and mark.read_text(encoding="ascii") == name:
        _link(folder, python, progress)
        return python
    if folder.exists() and not mark.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} exists, and was not made by this command: name a new folder with --env")
    try:
        shutil.rmtree(folder, ignore_errors=True)  # half-made, or of other pins
        folder.mkdir(parents=True)
        mark.touch()
        _make(folder, python, progress)
        _link(folder, python, progress)
        with replace_file(mark) as file:
            file.write(name.encode())
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return python


def cache() -> Path:
    """Return the folder of what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "secagg"


def pyfhel_wheel() -> Path:
    """Return where the wheel of Pyfhel is kept, for this Python and platform, once it has been built."""
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    return cache() / "wheels" / f"pyfhel-{PYFHEL}-{python}-{python}-{platform}.whl"


def _name() -> str:
    """Return a name for what is installed: with other pins it is another environment."""
    return hashlib.sha256(repr((sys.version, sys.base_prefix, PINS)).encode()).hexdigest()[:12]


def _links() -> Iterator[tuple[str, Path]]:
    """Yield what is linked into the environment's packages: names, and what they are here."""
    for package in ("secagg", "secagg_ext"):
        yield _package(package)
    yield _metadata(distribution("secagg"))  # its backends are found by that
    try:
        found = distribution("Pyfhel")
    except PackageNotFoundError:
        return
    yield _metadata(found)
    yield _package("Pyfhel")


def _package(name: str) -> tuple[str, Path]:
    spec = find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return name, Path(spec.origin).parent


def _metadata(found: Distribution) -> tuple[str, Path]:
    """Return the folder of a distribution's metadata."""
    file = next(file for file in found.files or () if file.name == "METADATA")
    folder = Path(str(found.locate_file(file))).parent
    return folder.name, folder


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other commands from making or using the same environment."""
    busy = ConfigError(f"another command measures in {folder}: wait for it, both would be slower")
    with ExitStack() as held:
        with os_errors(StorageError, f"cannot make {folder}"):
            folder.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(open_locked(folder.with_name(f".{folder.name}.lock"), os.O_CREAT | os.O_RDWR, busy))
        yield


def _make(folder: Path, python: Path, progress: Progress) -> None:
    with progress("environment of the peers (once): an empty one"):
        _run([sys.executable, "-m", "venv", str(folder)])
    with progress(f"environment of the peers (once): {len(PINS)} packages and what they need, about a minute"):
        _run([str(python), *_PIP, "install", "--quiet", *PINS])


def _link(folder: Path, python: Path, progress: Progress) -> None:
    """Bring what runs here into the environment; Pyfhel, if it is not installed, from its wheel."""
    (packages,) = folder.glob("lib/python*/site-packages")
    for path in packages.iterdir():
        if path.is_symlink():
            path.unlink()
    for name, target in _links():
        if not (packages / name).exists():
            (packages / name).symlink_to(target)
    if not (packages / "Pyfhel").exists() and pyfhel_wheel().exists():
        with progress("environment of the peers: Pyfhel, from the wheel that is kept"):
            _run([str(python), *_PIP, "install", "--quiet", "--no-deps", str(pyfhel_wheel())])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-_TAIL:])
        raise BackendUnavailableError(
            "the environment of the peers could not be made; pip needs a package index that it can reach (`pip config "
            "set global.index-url URL`), or make it where there is a network, and name it by --env FOLDER. "
            f"The end of what was said:\n{tail}"
        )
