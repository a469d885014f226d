"""Rounds of two sites, each under a setting, with a process for each side: ``python -m secagg.bench.sides FOLDER…``.

A process of its own knows what it alone takes of memory, and has an HE library's state for itself. The sides send each
other files and take turns: while one works, the other waits. A folder holds what `write_job` has put there; each side
leaves its figures as ``SIDE.json``, and a round that is over ``done``, or ``problem`` with what has ended it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import Config
from ..errors import PrecisionWarning, PrivacyWarning, SecAggError
from ..trust.key import ServerKey, load_key
from ..wire.layout import Layout
from .memory import peak, resident
from .parties import SHARES, EncryptedSites, EncryptedSum, RawSites, RawSum, Sites, State, Sum, kinds_of
from .turns import stopwatch

SIDES = ("server", "site")

#: Repetitions of what is quick.
_MOST = 5

_POLL_SECONDS = 0.005


def write_job(folder: Path, config: Config | None, layout: Layout, model: Path, seconds: float) -> None:
    """Write what both sides need.

    Parameters
    ----------
    folder : Path
        New and empty; one setting's.
    config : Config or None
        The setting's configuration; None for raw float32.
    layout : Layout
        The model's.
    model : Path
        An .npz with the tensors that are sent, numbered.
    seconds : float
        How long the sites may go on repeating what they have done once.
    """
    job = {
        "config": None if config is None else config.to_dict(),
        "layout": layout.to_json(),
        "model": str(model),
        "seconds": seconds,
    }
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")


def read_figures(folder: Path) -> dict[str, Any] | None:
    """Return what a round has cost, or its ``problem``; None as long as it is not over."""
    if (folder / "done").exists():
        sides = (json.loads((folder / f"{side}.json").read_text(encoding="utf-8")) for side in SIDES)
        return {name: value for side in sides for name, value in side.items()}
    with suppress(FileNotFoundError):
        return {"problem": (folder / "problem").read_text(encoding="utf-8")}
    return None


def run_sites(folder: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    """Do the work of the sites, and return what it has cost and how far the mean is from the true one."""
    began, config, layout = time.perf_counter(), _config(job), Layout.from_json(job["layout"])
    state = _read_state(Path(job["model"]), layout)
    sites = _open_sites(folder, config, layout, state)
    start, encrypting, sent = resident(), [0.0] * len(SHARES), 0
    answers: list[bytes | None] = [None]  # of the server, to each kind
    for kind in sites.kinds:
        for site in range(len(SHARES)):
            seconds, blob = stopwatch(partial(sites.send, site, kind, answers[-1]))
            encrypting[site] += seconds
            _put(folder / f"{kind}-{site}", [blob])
            sent += 0 if site else len(blob)
            del blob
        answers.append(_take(folder / f"{kind}-sum").read_bytes())
    aggregate = answers[-1]
    assert aggregate is not None
    seconds, mean = stopwatch(partial(sites.receive, aggregate))
    decrypting, nbytes = [seconds], peak() - start
    errors = [np.abs(mean[spec.name] - _expected(state[spec.name])).max(initial=0.0) for spec in layout.sent]
    del mean
    while time.perf_counter() - began < job["seconds"] and len(encrypting) < _MOST:
        turns = [stopwatch(partial(sites.send, 0, *turn))[0] for turn in zip(sites.kinds, answers, strict=False)]
        encrypting.append(sum(turns))
        decrypting.append(stopwatch(partial(sites.receive, aggregate))[0])
    return {
        "encrypt_seconds": encrypting,
        "decrypt_seconds": decrypting,
        "up_nbytes": sent,
        "down_nbytes": sum(len(answer) for answer in answers if answer is not None),
        "max_error": float(np.max(errors)),  # which is NaN if any is
        "site_peak_nbytes": nbytes,
    }


def _open_sites(folder: Path, config: Config | None, layout: Layout, state: State) -> Sites:
    if config is None:
        return RawSites(layout, state)
    sites = EncryptedSites(config, layout, state)
    sites.key.save(folder / "key")
    (folder / "key").rename(folder / "server.key")
    return sites


def run_server(folder: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    """Do the work of the server, and return what it has cost."""
    config = _config(job)
    key = None if config is None else load_key(_take(folder / "server.key"))
    assert key is None or isinstance(key, ServerKey)
    kinds = kinds_of(config)

    def new(kind: str) -> Sum:
        return RawSum() if config is None or key is None else EncryptedSum(config, key, kind)

    began, start, nbytes = time.perf_counter(), resident(), 0
    adding: dict[str, list[float]] = {kind: [] for kind in kinds}
    for kind in kinds:
        paths = [_take(folder / f"{kind}-{site}") for site in range(len(SHARES))]
        # As `secagg serve` does it, from files, a frame at a time: what counts for memory, and warms up.
        total = new(kind)
        for path in paths:
            total.add_file(path)
        answer = folder / f"{kind}-answer"
        _put(answer, total.finish())
        nbytes = max(nbytes, peak() - start)
        blobs = [path.read_bytes() for path in paths]
        while not adding[kind] or (time.perf_counter() - began < job["seconds"] and len(adding[kind]) < 2 * _MOST):
            total = new(kind)
            for blob in blobs:
                adding[kind].append(stopwatch(partial(total.add, blob))[0])
        del blobs
        answer.rename(folder / f"{kind}-sum")
    # Where there are two kinds, a site sends one of each.
    each = [sum(seconds) for seconds in zip(*adding.values(), strict=False)]
    return {"add_seconds": each, "server_peak_nbytes": nbytes}


def _expected(value: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(value, np.float64) * (sum(SHARES) / len(SHARES))


def _read_state(path: Path, layout: Layout) -> dict[str, NDArray[Any]]:
    """Return the model under all its names; what is not sent is zero, as only its name, dtype and shape count."""
    state: dict[str, NDArray[Any]] = {}
    with np.load(path, allow_pickle=False) as arrays:
        values = (arrays[str(number)] for number in range(len(layout.sent)))
        for spec in layout.tensors:
            value = np.zeros(spec.shape, spec.dtype) if spec.role == "local" else next(values)
            state |= dict.fromkeys(spec.names, value)
    return state


def _config(job: Mapping[str, Any]) -> Config | None:
    return None if job["config"] is None else Config.from_dict(job["config"])


def _put(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    """Write a file that appears whole."""
    draft = path.with_name(f"{path.name}.draft")
    with draft.open("wb") as file:
        file.writelines(chunks)
    draft.rename(path)


def _take(path: Path) -> Path:
    """Wait for a file; where nobody is left who has started this process, end it."""
    parent = os.getppid()
    while not path.exists():
        if os.getppid() != parent:
            sys.exit(1)
        time.sleep(_POLL_SECONDS)
    return path


def main(folders: Sequence[Path]) -> None:
    """Run one round after another; a side is a fork of this process, which has loaded all but HE libraries."""
    signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))  # the sides, too
    parent = os.getppid()
    for folder in folders:
        if os.getppid() != parent:
            return
        problem = _run_round(folder)
        _put(folder / ("done" if problem is None else "problem"), [(problem or "").encode()])


def _run_round(folder: Path) -> str | None:
    """Run both sides, and return what has ended one of them before its work was done."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # NumPy has threads, which sleep
        running = {_fork(side, folder): side for side in SIDES}
    problem = None
    while running:
        number, status = os.wait()
        side = running.pop(number)
        if status and problem is None:
            left = folder / f"{side}.problem"
            problem = left.read_text(encoding="utf-8") if left.exists() else _ended(side, status)
            for other in running:
                os.kill(other, signal.SIGKILL)
    for path in folder.glob("*-*"):  # messages, which are large
        path.unlink()
    return problem


def _ended(side: str, status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGKILL:
        return f"the system has killed the {side}'s process: is there too little memory?"
    return f"the {side}'s process has ended with exit code {code}"


def _fork(side: str, folder: Path) -> int:
    """Return the process that does the work of a side."""
    number = os.fork()
    if number:
        return number
    code = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        code = _run_side(side, folder)
    finally:
        if (error := sys.exception()) is not None:
            (folder / f"{side}.problem").write_text(repr(error), encoding="utf-8")
        os._exit(code)  # HE libraries have static objects that now and then break a process that is done


def _run_side(side: str, folder: Path) -> int:
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    for category in (PrivacyWarning, PrecisionWarning):  # two sites, and bits that a user compares, are meant
        warnings.simplefilter("ignore", category)
    try:
        found = (run_server if side == "server" else run_sites)(folder, job)
    except SecAggError as error:
        (folder / f"{side}.problem").write_text(str(error), encoding="utf-8")
        return 1
    (folder / f"{side}.json").write_text(json.dumps(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    main([Path(folder) for folder in sys.argv[1:]])
