"""Flower's own processes: a SuperLink, SuperNodes, and `flwr run`, each with a folder of its own; all end at last."""

from __future__ import annotations

import json
import os
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
from urllib.error import URLError
from urllib.request import urlopen

import psutil
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

ROOT = Path(__file__).resolve().parents[2]

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

    `home` is the folder of whoever submits runs; SuperLink and SuperNodes have their own beside it.
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
            for site in deployment.sites:
                deployment.register(site)
            deployment.start_nodes()
            yield deployment
        finally:
            deployment.stop()

    @property
    def database(self) -> Path:
        return self.folder / "server" / "state.db"

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def write_user_config(self) -> Path:
        """Tell `flwr` of this deployment, as whoever submits runs would; return the folder for FLWR_HOME."""
        home = self.folder / "user"
        home.mkdir(exist_ok=True)
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "deployment"\n\n[superlink.deployment]\naddress = "127.0.0.1:{self.port}"\n'
            f'root-certificates = "{self.kits["server"] / "ca.crt"}"\n'
        )
        return home

    def flwr(self, *arguments: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Run `flwr` as whoever submits runs."""
        return subprocess.run(
            ["flwr", *map(str, arguments)],
            env=environment(self.write_user_config()),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )

    def submit(self, app: Path, *arguments: object) -> subprocess.Popen[bytes]:
        """Submit a run; what it tells goes to a new log "run"."""
        self.write_user_config()
        (self.folder / "run.log").unlink(missing_ok=True)
        command = ["flwr", "run", str(app), "deployment", "--stream", *map(str, arguments)]
        return self._start("run", command, home="user")

    def wait_until_told(self, text: str, seconds: float = 120) -> None:
        """Return once the run has told something."""
        wait_until(lambda: text in self.log("run"), self.started["run"], self.folder / "run.log", seconds)

    def finish(self, timeout: float = 300) -> str:
        """Wait for the end of the run; return what it told."""
        assert self.started["run"].wait(timeout) == 0, self.log("run")
        return self.log("run")

    def runs(self) -> list[dict[str, str]]:
        listed = self.flwr("list", "deployment", "--format", "json")
        assert listed.returncode == 0, listed.stdout
        runs: list[dict[str, str]] = json.loads(listed.stdout)["runs"]
        return runs

    def register(self, site: str) -> None:
        """Convert a site's TLS key, and let the SuperLink know it."""
        key = load_pem_private_key((self.kits[site] / "tls.key").read_bytes(), None)
        private, public = self.folder / f"{site}.node", self.folder / f"{site}.node.pub"
        private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
        private.chmod(0o600)
        public.write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
        done = self.flwr("supernode", "register", public, "deployment")
        assert done.returncode == 0, done.stdout

    def start_nodes(self) -> None:
        for number, site in enumerate(self.sites):
            config = f"secagg-kit='{self.kits[site]}' partition-id={number} num-partitions={len(self.sites)}"
            command = ["flower-supernode", "--superlink", f"127.0.0.1:{self.port}"]
            command += ["--root-certificates", str(self.kits[site] / "ca.crt")]
            command += ["--auth-supernode-private-key", str(self.folder / f"{site}.node")]
            self._start(site, [*command, "--port", str(free_port()), "--node-config", config])

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
        """The process ids of the SuperLink, and of what it has started, by the names of their programs."""
        superlink = psutil.Process(self.started["server"].pid)
        found = {"flower-superlink": superlink.pid}
        for process in superlink.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                found |= {Path(word).name: process.pid for word in process.cmdline()[1:2]}
        return found

    def start_superlink(self) -> None:
        kit = self.kits["server"]
        command = ["flower-superlink", "--host", "127.0.0.1", "--port", str(self.port), "--enable-supernode-auth"]
        command += ["--ssl-certfile", str(kit / "tls.crt"), "--ssl-keyfile", str(kit / "tls.key")]
        command += ["--ssl-ca-certfile", str(kit / "ca.crt"), "--database", str(self.database)]
        process = self._start("server", command, SECAGG_SERVER_KIT=str(kit))
        context = ssl.create_default_context(cafile=kit / "ca.crt")

        def healthy() -> bool:
            try:
                with urlopen(f"https://127.0.0.1:{self.port}/health", timeout=5, context=context) as answer:
                    return bool(answer.status == 200)
            except (URLError, OSError):
                return False

        wait_until(healthy, process, self.folder / "server.log", 60)

    def _start(
        self, name: str, command: list[str], home: str | None = None, **variables: str
    ) -> subprocess.Popen[bytes]:
        folder = self.folder / (home or name)
        folder.mkdir(exist_ok=True)
        with (self.folder / f"{name}.log").open("ab") as log:
            self.started[name] = subprocess.Popen(
                command,
                env=environment(folder, **variables),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self.started[name]
