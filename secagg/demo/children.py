"""Child processes that never outlive their parent's work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn

from ..errors import SecAggError
from ..storage.signals import undisturbed

_GRACE_SECONDS = 5.0


class Children:
    """Starts processes, each with its log file, and ends them all when the ``with`` block ends, however it ends.

    Each child is in a session of its own, so that Ctrl-C reaches only the parent, which then ends the children in
    order. SIGTERM to the parent does the same; where it is killed, the kernel ends them (`secagg.demo.child`).
    """

    def __init__(self) -> None:
        self._children: list[tuple[str, subprocess.Popen[bytes], Path]] = []
        self._handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def start(self, name: str, module: str, arguments: list[str], log: Path) -> None:
        """Start ``python -m module arguments``; output and errors go to `log`."""
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
        # A child that has been started, and is not in the list yet, would outlive an interruption.
        with log.open("wb") as file, undisturbed():
            process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.child", str(os.getpid()), module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
            self._children.append((name, process, log))

    def running(self, names: set[str]) -> bool:
        """Return whether any of the named children still runs.

        Raises
        ------
        SecAggError
            If a child has failed; the message ends with the end of its log.
        """
        alive = False
        for name, process, log in self._children:
            code = process.poll()
            if code:
                tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:])
                raise SecAggError(f"{name} ended with exit code {code}; the end of {log}:\n{tail}")
            alive = alive or (code is None and name in names)
        return alive

    def stop(self, name: str) -> None:
        """Ask a child to stop, and wait until it has."""
        for known, process, _ in self._children:
            if known == name:
                _end([process])

    def kill(self, name: str) -> None:
        """End a child as a power loss would, by SIGKILL, and forget it: it may be started again."""
        for child in [child for child in self._children if child[0] == name]:
            child[1].kill()
            child[1].wait()
            self._children.remove(child)

    def __enter__(self) -> Children:
        for number in self._handlers:  # SIGINT too: a shell starts background jobs with it ignored
            signal.signal(number, _interrupt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in self._handlers:
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not leave one behind
        _end([process for _, process, _ in self._children])
        for number, handler in self._handlers.items():
            signal.signal(number, handler)


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        try:
            process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt(number)
