"""The other side of `secagg.bench.growth.worker`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from ...config import Config
from ...errors import SecAggError
from ...storage.signals import undisturbed
from ...trust.key import KeyPair
from . import worker


class Worker:
    """A process that ends with the ``with`` block, however that ends.

    Parameters
    ----------
    role : str
        ``"site"`` or ``"server"``.
    folder : Path
        With configuration and keys; its output goes there, too.
    parameters : int
        Of the model.
    """

    def __init__(self, role: str, folder: Path, parameters: int = 0) -> None:
        self._role, self._log = role, folder / f"{role}.log"
        command = [sys.executable, "-m", worker.__name__, role, str(folder), str(parameters)]
        with self._log.open("wb") as log, undisturbed():
            # In a session of its own: Ctrl-C reaches the parent alone, which ends it.
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
            )

    def ask(self, call: str, *arguments: str | int | None) -> Any:
        """Return what a call returns there.

        Raises
        ------
        SecAggError
            If it fails, or the process has ended.
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
            raise SecAggError(f"{self._role}, {call}: {answer['error']}")
        return answer["result"]

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()


def write_federation(folder: Path, config: Config, keys: KeyPair) -> None:
    """Write what workers need into a folder."""
    (folder / worker.CONFIG_FILE).write_text(json.dumps(config.to_dict()), encoding="utf-8")
    keys.client.save(folder / worker.SITE_KEY_FILE)
    keys.server.save(folder / worker.SERVER_KEY_FILE)
