"""Kits of a federation of four sites, and `secagg serve` as a process."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from secagg import Client, Update
from secagg.config import Config
from secagg.integrations.grpc import SiteSession
from secagg.setup.project_file import ProjectFile
from secagg.setup.provisioner import Provisioner
from secagg.trust import Tls
from secagg.trust.kit import load_site_kit

SITES = ("site-1", "site-2", "site-3", "site-4")
STATE = {"w": np.arange(1000, dtype=np.float32) / 1000}


def federation(min_clients: int = 3) -> Config:
    aggregation = {"min_clients": min_clients, "max_clients": 6, "max_abs": 1.0, "max_weight": 1.0}
    return Config.from_dict({"he": {"preset": "smallest"}, "aggregation": aggregation})


@dataclass(frozen=True)
class Kits:
    """Opened kits, what makes others, and the kits before the last change, which parties keep that got no new one."""

    folder: Path
    provisioner: Provisioner
    before: Kits | None = None

    @classmethod
    def make(cls, folder: Path, config: Config) -> Kits:
        kits = folder / "kits"
        kits.mkdir(parents=True)
        file = ProjectFile("brain", config, SITES, ("localhost",))
        return cls(kits, Provisioner.create(file, folder / "authority", kits))

    def __getitem__(self, name: str) -> Path:
        own = self.folder / name
        return self.before[name] if self.before is not None and not own.exists() else own

    def change(self, folder: Path, change: Callable[[Provisioner, Path, Path], Any]) -> Kits:
        """Return the kits that there are when the provisioner has changed something, such as added a site."""
        kits, changed = folder / "kits", folder / "authority"
        kits.mkdir(parents=True)
        changed.mkdir()
        change(self.provisioner, changed, kits)
        shutil.copytree(changed, self.provisioner.folder, dirs_exist_ok=True)
        return Kits(kits, Provisioner.load(self.provisioner.folder), self)

    def session(self, site: str, address: str, timeout: float = 120.0) -> SiteSession:
        kit = load_site_kit(self[site])
        return SiteSession(address, kit.name, tls=Tls.load(kit.folder), timeout=timeout, project=kit.project)

    def update(self, site: str, round: int = 0) -> Update:
        kit = load_site_kit(self[site])
        client = Client(kit.config, kit.key, kit.name, identity=kit.identity, project=kit.project)
        client.restore_carry(b"")  # it is made anew, and carries nothing
        return client.encrypt(STATE, weight=1.0, round=round)


@dataclass
class Served:
    """`secagg serve`, from its start to the end of the block; `log` is what it wrote to stderr."""

    kit: Path
    folder: Path
    options: tuple[object, ...] = ()
    process: subprocess.Popen[str] = field(init=False)
    address: str = field(init=False)

    def __enter__(self) -> Served:
        command = [sys.executable, "-m", "secagg.cli", "serve", str(self.kit), "--address", "127.0.0.1:0"]
        command += ["--run-dir", str(self.folder / "run"), *map(str, self.options)]
        self.folder.mkdir(exist_ok=True)
        with (self.folder / "log").open("w") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        self.address = self.wait_for(r'serving on ([\d.:]+)["\n]')
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def wait_for(self, pattern: str) -> str:
        """Return the group of `pattern`, once the log has it."""
        deadline = time.monotonic() + 300
        while not (found := re.search(pattern, self.log)):
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)
        return found[1]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal; return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(240)
