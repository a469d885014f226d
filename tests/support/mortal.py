"""A server process that dies, and is started again on the same folder and port."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from secagg.trust.kit_files import CONFIG_FILE, IDENTITY_FILE, PROJECT_FILE, SERVER_KEY_FILE

#: Runs a command that dies at a chosen call; see there.
CRASHING = Path(__file__).parents[1] / "chaos" / "crashing.py"
#: Runs a server without certificates; see there.
INSECURE = Path(__file__).parents[1] / "integrations" / "grpc" / "serve.py"


def free_port() -> int:
    """A port below those that connections get: none of a site takes it while no server listens there.

    Nor does a suite's other worker: each draws from ports of its own.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        port = random.SystemRandom().randrange(20_000 + worker % 64, 32_000, 64)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


@dataclass
class MortalServer:
    """`secagg serve`, from `start` to the end of the block, with deaths in between.

    `folder` has the run folder ``run``, and of all lives the ``log`` and the ``output``.
    """

    kit: Path
    folder: Path
    round_timeout: float = 3600.0
    idle_seconds: float = 60.0
    insecure: bool = False
    options: tuple[object, ...] = ()
    port: int = field(default_factory=free_port)
    lives: int = 0
    process: subprocess.Popen[str] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def start(self, crash: Mapping[str, Any] | None = None) -> None:
        """Start it; with `crash`, it dies by itself."""
        self.folder.mkdir(exist_ok=True)
        command = [sys.executable, "-W", "error"]
        if self.insecure:
            command += [str(INSECURE), json.dumps(self._settings)]
        else:
            command += ["-m", "secagg.cli"] if crash is None else [str(CRASHING), json.dumps(crash)]
            command += ["serve", str(self.kit), "--address", self.address, "--run-dir", str(self.run)]
            command += ["--round-timeout", str(self.round_timeout), "--idle-timeout", str(self.idle_seconds)]
            command += map(str, self.options)
        with (self.folder / "log").open("a") as log, (self.folder / "output").open("a") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=log, text=True)
        self.lives += 1

    @property
    def _settings(self) -> dict[str, Any]:
        """Of a server without certificates."""
        return {
            "config": str(self.kit / CONFIG_FILE),
            "key": str(self.kit / SERVER_KEY_FILE),
            "project": str(self.kit / PROJECT_FILE),
            "identity": str(self.kit / IDENTITY_FILE),
            "folder": str(self.run),
            "address": self.address,
            "round_timeout": self.round_timeout,
            "limits": {"idle_seconds": self.idle_seconds},
        }

    @property
    def listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

    def wait_until_it_listens(self) -> None:
        """Return once it takes connections, or is dead."""
        while not self.dead and not self.listens:
            time.sleep(0.02)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        assert self.dead_by_kill(wait=True)

    @property
    def dead(self) -> bool:
        assert self.process is not None
        return self.process.poll() is not None

    def dead_by_kill(self, wait: bool = False) -> bool:
        """Whether it is dead; if it has ended in another way than by SIGKILL, that is a fault."""
        assert self.process is not None
        code = self.process.wait(240) if wait else self.process.poll()
        assert code in (None, -signal.SIGKILL), f"the server ended by itself: {code}\n{self.log[-4000:]}"
        return code is not None

    def stop(self) -> None:
        """Stop it in order: nothing hangs in it, and no life of it has met what it did not expect."""
        assert self.process is not None
        assert not self.dead_by_kill()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(240) == 0, self.log[-4000:]
        assert "Traceback" not in self.log, self.log[-8000:]

    def __enter__(self) -> MortalServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
