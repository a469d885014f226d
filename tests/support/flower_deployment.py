"""Flower's own processes, started as docs/flower.md has it, each with a folder of its own; all end at last."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

import psutil

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "flower.md").read_text(encoding="utf-8")

#: What the page has each party type.
SUPERLINK, NODE_KEY, REGISTER, SUPERNODE, RUN = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
(CONNECTION,) = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)

#: Where the programs of this environment are: Flower looks for those that it starts on PATH.
BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def environment(home: Path, **variables: str) -> dict[str, str]:
    """What a shell has in which Flower is used here: nothing of it asks the network for anything."""
    return {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        **variables,
    }


def kill(processes: Iterable[psutil.Process]) -> None:
    """End processes and all that they have started, first kindly."""
    tree: list[psutil.Process] = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            tree += [process, *process.children(recursive=True)]
    for act in (psutil.Process.terminate, psutil.Process.kill):
        for process in tree:
            with suppress(psutil.NoSuchProcess):
                act(process)
        _, tree = psutil.wait_procs(tree, timeout=15)
    assert not tree, tree


def wait_until(condition: Callable[[], object], process: subprocess.Popen[bytes], log: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


@dataclass
class Deployment:
    """A SuperLink and SuperNodes over TLS, each node with a key that is registered.

    SuperLink, SuperNodes and whoever submits runs have folders of their own for FLWR_HOME: server, `sites`, user.
    """

    folder: Path
    kits: Mapping[str, Path]
    sites: tuple[str, ...]
    port: int = field(default_factory=free_port)
    started: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def running(cls, folder: Path, kits: Mapping[str, Path], sites: Iterable[str]) -> Iterator[Deployment]:
        deployment = cls(folder, kits, tuple(sites))
        try:
            deployment.start_superlink()
            deployment.register()
            deployment.start_nodes()
            yield deployment
        finally:
            deployment.stop()

    @property
    def database(self) -> Path:
        return self.folder / "server" / "state.db"

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def submit(self, app: Path, *arguments: str) -> None:
        """Submit a run; what it tells goes to a new log "run"."""
        (self.folder / "run.log").unlink(missing_ok=True)
        self._start("run", f"{RUN.strip()} {shlex.join(arguments)}", "user", app)

    def wait_until_told(self, text: str, seconds: float = 300) -> None:
        """Return once the run has told something."""
        wait_until(lambda: text in self.log("run"), self.started["run"], self.folder / "run.log", seconds)

    def finish(self, timeout: float = 600) -> str:
        """Wait for the end of the run; return what it told."""
        assert self.started["run"].wait(timeout) == 0, self.log("run")
        return self.log("run")

    def call(self, command: str) -> str:
        """Let the server's administrator type a command; return what it tells."""
        done = subprocess.run(
            ["bash", "-e", "-c", command],
            cwd=self.folder,
            env=environment(self._home("user")),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def runs(self) -> list[dict[str, str]]:
        """Return all runs, the newest first."""
        runs: list[dict[str, str]] = json.loads(self.call("flwr list hospitals --format json"))["runs"]
        return runs

    def start_nodes(self) -> None:
        for number, site in enumerate(self.sites):
            command = self._filled(SUPERNODE, site)
            changed = command.replace(
                "partition-id=0 num-partitions=3", f"partition-id={number} num-partitions={len(self.sites)}"
            )
            self._start(site, f"{changed.strip()} --port {free_port()}", site)  # a machine each would need no port

    def interrupt(self) -> None:
        """Press Ctrl-C where SuperNodes run, then where the SuperLink does; return when all have ended.

        The SuperLink last: it lets in again at once only nodes that have left it. `flwr run` only shows what goes on.
        """
        run = self.started.pop("run")
        run.kill()
        run.wait()
        for name in (*self.sites, "server"):
            process = psutil.Process(self.started[name].pid)
            tree = [process, *process.children(recursive=True)]
            os.killpg(process.pid, signal.SIGINT)
            _, left = psutil.wait_procs(tree, timeout=60)
            assert not left, left
            self.started[name].wait()

    def stop(self) -> None:
        kill(psutil.Process(process.pid) for process in self.started.values() if process.poll() is None)
        for process in self.started.values():
            process.wait()

    def server_processes(self) -> dict[str, int]:
        """Return the process ids of the SuperLink and of what it has started, by the names of their programs."""
        found = {}
        for process in [top := psutil.Process(self.started["server"].pid), *top.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                found |= {Path(word).name: process.pid for word in process.cmdline()[:2]}
        return found

    def start_superlink(self) -> None:
        process = self._start("server", self._filled(SUPERLINK), "server")
        context = ssl.create_default_context(cafile=self.kits["server"] / "ca.crt")

        def healthy() -> bool:
            try:
                with urlopen(f"https://127.0.0.1:{self.port}/health", timeout=5, context=context) as answer:
                    return bool(answer.status == 200)
            except OSError:
                return False

        wait_until(healthy, process, self.folder / "server.log", 60)

    def register(self) -> None:
        """Make the keys of all nodes, and let the SuperLink know them."""
        (self._home("user") / "config.toml").write_text(self._filled(CONNECTION))
        for site in self.sites:
            self.call(self._filled(NODE_KEY, site) + self._filled(REGISTER, site))

    def _filled(self, text: str, site: str = "site-1") -> str:
        """Put what is here in the place of what the page has."""
        for there, here in {
            "fl.example.org:8000": f"127.0.0.1:{self.port}",
            "--port 8000": f"--port {self.port}",
            "/var/lib/flower/state.db": str(self.database),
            "/etc/secagg/server": str(self.kits["server"]),
            "/etc/secagg/site-1": str(self.kits[site]),
            "site-1.": f"{site}.",
        }.items():
            text = text.replace(there, here)
        return text

    def _home(self, name: str) -> Path:
        home = self.folder / name
        home.mkdir(exist_ok=True)
        return home

    def _start(self, name: str, command: str, home: str, folder: Path | None = None) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.started[name] = subprocess.Popen(
                ["bash", "-e", "-c", command],
                cwd=folder or self.folder,
                env=environment(self._home(home)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self.started[name]
