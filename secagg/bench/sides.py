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
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..aggregator import Aggregator
from ..client import Client
from ..config import Config
from ..errors import PrecisionWarning, PrivacyWarning, SecAggError
from ..keygen import generate_keys
from ..setup.trial import Trial
from ..trust.key import ServerKey, load_key
from ..wire.layout import Layout
from ..wire.update import Update
from .memory import peak, resident
from .turns import stopwatch

SIDES = ("server", "site")

#: What each site sends is the model times this: the sum is of two different updates, and the mean exact in float32.
SHARES = (1.0, 0.5)

#: Repetitions of what is quick.
_MOST = 5

#: Values with which a library warms up.
_WARM_UP = 1000

_POLL_SECONDS = 0.005

State = Mapping[str, NDArray[Any]]


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


class _Sites(Protocol):
    """Both sites of a round, who are one process."""

    @property
    def kinds(self) -> Sequence[str]:
        """What they send, in order: a calibration before the update, where scales are measured."""

    def send(self, site: int, kind: str, received: bytes | None) -> bytes:
        """Return the message of a kind, after what the server has answered to the kind before."""

    def receive(self, blob: bytes) -> State:
        """Return the mean."""


class _Sum(Protocol):
    """What a server makes of the messages of one kind."""

    def add(self, message: Any) -> None: ...

    def finish(self) -> Iterable[bytes | memoryview]: ...


class EncryptedSites:
    """Two sites under a configuration, with keys of their own; the libraries are warm.

    Parameters
    ----------
    config : Config
        The configuration.
    layout : Layout
        The model's, under it.
    state : mapping of str to ndarray
        What is encrypted, under all its names.
    """

    def __init__(self, config: Config, layout: Layout, state: State) -> None:
        self.kinds = _kinds(config)
        keys = generate_keys(config)
        self.key = keys.server
        trial = Trial(config, keys.client)
        values = np.linspace(-trial.bound, trial.bound, _WARM_UP, dtype=np.float32)
        scales = trial.scales([values, values])
        trial.sites[0].decrypt(trial.aggregate([values, values], scales))
        self._layout, self._states = layout, [_times(state, share) for share in SHARES]
        self._clients = [Client(config, keys.client, f"site-{number + 1}") for number in range(len(SHARES))]

    def send(self, site: int, kind: str, received: bytes | None) -> bytes:
        """Return what a site sends; see `_Sites`."""
        client, state = self._clients[site], self._states[site]
        if kind == "calibration":
            return client.calibrate(state, layout=self._layout).to_bytes()
        scales = None if received is None else Update.from_bytes(received)
        return client.encrypt(state, layout=self._layout, calibration=scales).to_bytes()

    def receive(self, blob: bytes) -> State:
        """Return the mean."""
        return self._clients[-1].decrypt(Update.from_bytes(blob))


class _RawSites:
    """What sites do that encrypt nothing: values as float32, one after another."""

    def __init__(self, layout: Layout, state: State) -> None:
        self.kinds = _kinds(None)
        self._specs, self._states = layout.sent, [_times(state, share) for share in SHARES]

    def send(self, site: int, kind: str, received: bytes | None) -> bytes:
        state = self._states[site]
        return b"".join(state[spec.name].astype(np.float32, copy=False).tobytes() for spec in self._specs)

    def receive(self, blob: bytes) -> State:
        mean, state, start = np.frombuffer(blob, np.float32) / len(SHARES), {}, 0
        for spec in self._specs:
            state[spec.name] = mean[start : start + spec.size].reshape(spec.shape)
            start += spec.size
        return state


class _RawSum:
    """What a server does that adds float32."""

    def __init__(self) -> None:
        self._total: NDArray[np.float32] | None = None

    def add(self, message: NDArray[np.float32]) -> None:
        if self._total is None:
            self._total = np.zeros_like(message)
        self._total += message

    def finish(self) -> Iterable[bytes | memoryview]:
        assert self._total is not None
        return [self._total.data.cast("B")]


class _EncryptedSum:
    def __init__(self, config: Config, key: ServerKey, kind: str) -> None:
        self._aggregator = Aggregator(config, key, kind=kind)

    def add(self, message: Update) -> None:
        self._aggregator.add(message)

    def finish(self) -> Iterable[bytes | memoryview]:
        return self._aggregator.finish().chunks()


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
    error = max(float(np.abs(mean[spec.name] - _expected(state[spec.name])).max(initial=0.0)) for spec in layout.sent)
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
        "max_error": error,
        "site_peak_nbytes": nbytes,
    }


def _open_sites(folder: Path, config: Config | None, layout: Layout, state: State) -> _Sites:
    if config is None:
        return _RawSites(layout, state)
    sites = EncryptedSites(config, layout, state)
    sites.key.save(folder / "key")
    (folder / "key").rename(folder / "server.key")
    return sites


def run_server(folder: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    """Do the work of the server, and return what it has cost."""
    config = _config(job)
    key = None if config is None else load_key(_take(folder / "server.key"))
    assert key is None or isinstance(key, ServerKey)
    kinds = _kinds(config)

    def new(kind: str) -> _Sum:
        return _RawSum() if config is None or key is None else _EncryptedSum(config, key, kind)

    def parse(blob: bytes) -> Any:
        return np.frombuffer(blob, np.float32) if config is None else Update.from_bytes(blob)

    began, start, nbytes = time.perf_counter(), resident(), 0
    adding: dict[str, list[float]] = {kind: [] for kind in kinds}
    for kind in kinds:
        paths = [_take(folder / f"{kind}-{site}") for site in range(len(SHARES))]
        # As `secagg serve` does it, from files, a frame at a time: what counts for memory, and warms up.
        total = new(kind)
        for path in paths:
            if config is None:
                total.add(np.fromfile(path, np.float32))
            else:
                with Update.open(path) as update:
                    total.add(update)
        answer = folder / f"{kind}-answer"
        _put(answer, total.finish())
        nbytes = max(nbytes, peak() - start)
        blobs = [path.read_bytes() for path in paths]
        while not adding[kind] or (time.perf_counter() - began < job["seconds"] and len(adding[kind]) < 2 * _MOST):
            total = new(kind)
            for blob in blobs:
                adding[kind].append(stopwatch(partial(_add, total, parse, blob))[0])
        del blobs
        answer.rename(folder / f"{kind}-sum")
    # Where there are two kinds, a site sends one of each.
    each = [sum(seconds) for seconds in zip(*adding.values(), strict=False)]
    return {"add_seconds": each, "server_peak_nbytes": nbytes}


def _add(total: _Sum, parse: Callable[[bytes], Any], blob: bytes) -> None:
    total.add(parse(blob))


def _times(state: State, share: float) -> State:
    return {
        name: value if share == 1 or value.dtype.kind != "f" else value * value.dtype.type(share)
        for name, value in state.items()
    }


def _expected(value: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(value, np.float64) * (sum(SHARES) / len(SHARES))


def _read_state(path: Path, layout: Layout) -> dict[str, NDArray[Any]]:
    """Return the model under all its names; what is not sent is zero, as only its name, dtype and shape count."""
    state: dict[str, NDArray[Any]] = {}
    with np.load(path) as arrays:
        values = (arrays[str(number)] for number in range(len(layout.sent)))
        for spec in layout.tensors:
            value = np.zeros(spec.shape, spec.dtype) if spec.role == "local" else next(values)
            state |= dict.fromkeys(spec.names, value)
    return state


def _kinds(config: Config | None) -> tuple[str, ...]:
    return ("calibration", "update") if config is not None and config.aggregation.calibrated else ("update",)


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
