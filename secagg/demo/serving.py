"""``secagg serve`` as a child process."""

from __future__ import annotations

import json
import time
from pathlib import Path

from ..errors import TransportError
from .children import Children

_START_SECONDS = 60.0
_POLL_SECONDS = 0.1


class ServerProcess:
    """A server on a free port of this machine, which has been started, and perhaps does not listen yet.

    Parameters
    ----------
    children : Children
        Ends it.
    name : str
        Of the child, and of its log.
    kit : Path
        Folder of the server's kit.
    run_dir : Path
        Its run folder.
    logs : Path
        Folder of its log.
    """

    def __init__(self, children: Children, name: str, kit: Path, run_dir: Path, logs: Path) -> None:
        self._children, self._name, self._run_dir = children, name, run_dir
        self._log = logs / f"{name}.log"
        arguments = ["serve", str(kit), "--address", "127.0.0.1:0", "--run-dir", str(run_dir)]
        children.start(name, "secagg.cli", arguments, self._log)

    def address(self) -> str:
        """Return where the server listens, by its log; `SecAggError` if it ends before that, or takes too long."""
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            self._children.running({self._name})
            for line in self._log.read_text(encoding="utf-8").splitlines():
                if line.startswith("serving on "):
                    return line.removeprefix("serving on ")
            time.sleep(_POLL_SECONDS)
        raise TransportError(f"the server did not start within {_START_SECONDS:.0f} s; see {self._log}")

    def add_seconds(self) -> list[float]:
        """Return the seconds that the server has taken to add the updates of each completed round, all sites' together.

        A round's aggregate can be had a moment before its line, and what of the line is there before its end.
        """
        path = self._run_dir / "rounds.jsonl"
        whole, _, _ = (path.read_text(encoding="utf-8") if path.exists() else "").rpartition("\n")
        lines = whole.splitlines()
        completed = [record for record in map(json.loads, lines) if record["outcome"] == "completed"]
        return [sum(upload["add_seconds"] for upload in record["uploads"]) for record in completed]

    def stop(self) -> None:
        """Ask it to stop, and wait until it has."""
        self._children.stop(self._name)
