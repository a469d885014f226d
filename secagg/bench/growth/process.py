"""The other side of `secagg.bench.growth.worker`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...config import Config
from ...errors import SecAggError
from ...storage.signals import undisturbed
from ...trust.key import KeyPair
from . import worker


@contextmanager
def working(role: str, folder: Path, parameters: int = 0) -> Iterator[Worker]:
    """Start a worker, which ends with the ``with`` block, however that ends.

    Parameters
    ----------
    role : str
        ``"site"`` or ``"server"``.
    folder : Path
        With configuration and keys; its log goes there, too.
    parameters : int
        Of the model of a site.
    """
    command = [sys.executable, "-m", worker.__name__, role, str(folder), str(parameters)]
    path, started = folder / f"{role}.log", []
    try:
        with path.open("wb") as log, undisturbed():
            # In a session of its own: Ctrl-C reaches the parent alone, which ends it.
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
            )
            started.append(process)
        yield Worker(role, started[0], path)
    finally:
        for process in started:
            process.kill()
            process.communicate()


class Worker:
    """A process that answers calls."""

    def __init__(self, role: str, process: subprocess.Popen[str], log: Path) -> None:
        self._role, self._process, self._log = role, process, log

    def ask(self, call: str, *arguments: str | int | None) -> Any:
        """Return what a call returns there.

        Raises
        ------
        SecAggError
            If it fails (`WrongMeanError` if a mean is wrong), or the process has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps([call, *arguments]), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            killed = " (killed: was there memory enough?)" if code == -9 else ""
            text = self._log.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
            raise SecAggError(f"the {self._role} ended in {call!r} with exit code {code}{killed}: {text}")
        answer = json.loads(line)
        if "error" in answer:
            kind = worker.WrongMeanError if answer["wrong"] else SecAggError
            raise kind(f"{self._role}, {call}: {answer['error']}")
        return answer["result"]


def write_federation(folder: Path, config: Config, keys: KeyPair) -> None:
    """Write what workers need into a folder."""
    (folder / worker.CONFIG_FILE).write_text(json.dumps(config.to_dict()), encoding="utf-8")
    keys.client.save(folder / worker.SITE_KEY_FILE)
    keys.server.save(folder / worker.SERVER_KEY_FILE)
