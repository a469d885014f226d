"""All peers in one run, in turns, on the same cores."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ...errors import SecAggError
from ...setup.progress import Progress, silent
from .job import Job
from .peers import PEERS


@dataclass
class Row:
    """What a peer costs: one number a repetition in each list; bytes and seconds of all phases together.

    Parameters
    ----------
    name, group, title, version, note : str
        Who it is.
    encode_seconds : list of float
        Of a site: encrypt and serialise.
    up_nbytes : int
        What a site sends.
    add_seconds : list of float
        Of the server: read and add the message of a site.
    finish_seconds : list of float
        Of the server: what remains when all have been added.
    down_nbytes : int
        What a site is sent.
    decode_seconds : list of float
        Of a site: read the mean.
    server_peak_nbytes, site_peak_nbytes : int
        Memory above the start, at the most.
    max_error : float
        How far the mean is off the one in float64.
    problem : str or None
        Why there are no numbers.
    """

    name: str
    group: str
    title: str
    version: str = ""
    encode_seconds: list[float] = field(default_factory=list)
    up_nbytes: int = 0
    add_seconds: list[float] = field(default_factory=list)
    finish_seconds: list[float] = field(default_factory=list)
    down_nbytes: int = 0
    decode_seconds: list[float] = field(default_factory=list)
    server_peak_nbytes: int = 0
    site_peak_nbytes: int = 0
    max_error: float = 0.0
    note: str = ""
    problem: str | None = None


def measure(
    python: Sequence[str],
    names: Iterable[str],
    shapes: Mapping[str, tuple[int, ...]],
    sites: int,
    repeats: int,
    progress: Progress = silent,
) -> list[Row]:
    """Let all peers take turns: each once, then each once more. What fails once gets no more turns.

    Parameters
    ----------
    python : sequence of str
        The interpreter, with options, of the environment that has the libraries.
    names : iterable of str
        Of `PEERS`.
    shapes : mapping of str to tuple of int
        Of the model's float32 tensors.
    sites : int
        How many send their update, from 2.
    repeats : int
        How many turns each has.
    progress : callable, optional
        Shows how far it is.
    """
    rows = {name: Row(name, PEERS[name].group, PEERS[name].title, note=PEERS[name].note) for name in names}
    turns = [(turn, row) for turn in range(repeats) for row in rows.values()]
    for done, (turn, row) in enumerate(turns, 1):
        if row.problem is not None:
            continue
        with progress(f"turn {turn + 1} of {repeats}, {done} of {len(turns)}: {row.title}") as report:
            try:
                _turn(python, row, shapes, sites, report)
            except _PeerError as error:
                row.problem = str(error)
    return list(rows.values())


class _PeerError(SecAggError):
    """A peer that could not do its part."""


def _turn(python: Sequence[str], row: Row, shapes: Mapping[str, tuple[int, ...]], sites: int, report: Any) -> None:
    """Measure a peer once, and add that to its row."""
    peer = PEERS[row.name]
    with TemporaryDirectory(prefix="secagg-bench-") as folder, ExitStack() as stack:
        path = Path(folder, "job.json")
        job = Job(row.name, shapes, sites, folder)
        job.keys.mkdir()
        job.save(path)

        def start(role: str) -> _Worker:
            worker = _Worker(python, row.name, role, path)
            stack.callback(worker.end)
            return worker

        site = start("Site")
        row.version = ", ".join(f"{name} {found}" for name, found in site.answer()["versions"].items())
        others = [start("Server"), start("Reader")]  # the site has made the keys
        for worker in others:
            worker.answer()
        server, reader = others
        steps = 2 * peer.phases + 1
        encode = add = finish = 0.0
        up = down = 0
        for phase in range(peer.phases):
            report(2 * phase, steps)
            sent = site.ask("send", phase)
            report(2 * phase + 1, steps)
            added = server.ask("add", phase)
            encode, up = encode + sent["seconds"], up + sent["nbytes"]
            add, finish, down = add + added["seconds"], finish + added["finish"], down + added["nbytes"]
        report(steps - 1, steps)
        read = reader.ask("read", peer.phases - 1)
        report(steps, steps)
    row.encode_seconds.append(encode)
    row.add_seconds.append(add)
    row.finish_seconds.append(finish)
    row.decode_seconds.append(read["seconds"])
    row.up_nbytes, row.down_nbytes = max(row.up_nbytes, up), max(row.down_nbytes, down)
    row.site_peak_nbytes = max(row.site_peak_nbytes, sent["peak"])
    row.server_peak_nbytes = max(row.server_peak_nbytes, added["peak"])
    row.max_error = max(row.max_error, read["max_error"])


class _Worker:
    """A process with one role."""

    def __init__(self, python: Sequence[str], name: str, role: str, job: Path) -> None:
        self._what, self._log = f"{PEERS[name].title}, {role.lower()}", job.with_name(f"{role}.log")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*python, "-m", f"{__package__}.worker", name, role, str(job)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # Ctrl-C reaches the command alone, which ends all of them
            )

    def ask(self, what: str, phase: int) -> dict[str, Any]:
        """Have something measured."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # why it has ended is found below
            print(json.dumps([what, phase]), file=self._process.stdin, flush=True)
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Return its next answer; `_PeerError` if there is none."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            tail = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            raise _PeerError(f"{self._what} ended with exit code {code}{': ' if tail else ''}{''.join(tail)}")
        answer: dict[str, Any] = json.loads(line)
        if "problem" in answer:
            raise _PeerError(answer["problem"])
        return answer

    def end(self) -> None:
        """End it."""
        self._process.kill()  # it has nothing to tidy up: its folder goes as a whole
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
