"""The federations of the demo, as processes of this machine: one encrypted, one with plain averaging."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..config import Config
from ..setup import ProjectFile, Provisioner
from ..site.record import SiteRecord, read_records
from ..storage.staging import new_folder
from ..trust import Tls
from ..trust.kit_files import SERVER
from ..ui.progress import progress
from ..ui.units import show_count
from .children import Children
from .report import RoundResult, combine, mean_dice
from .serving import ServerProcess

_POLL_SECONDS = 0.1


class DemoFederation:
    """The sites of a demo, which train the same twice.

    Parameters
    ----------
    out : Path
        New folder for kits, logs, records and the server's run folder.
    config : Config
        Of the encrypted federation.
    sites : int
        How many; they are called ``site-1`` and so on.
    rounds : int
        Rounds of training.
    training : list of str
        Options of ``secagg site`` for what is trained; each site gets its ``part`` besides.
    task : mapping of str to object, optional
        The ``task:`` block of the manifest.

    Raises
    ------
    ConfigError
        If there are kits in the folder already.
    """

    def __init__(
        self,
        out: Path,
        config: Config,
        sites: int,
        rounds: int,
        training: list[str],
        task: Mapping[str, Any] | None = None,
    ) -> None:
        self._out, self._rounds = out, rounds
        self._sites = [f"site-{number}" for number in range(1, sites + 1)]
        threads = max(1, (os.cpu_count() or 1) // sites)
        self._options = ["--rounds", str(rounds), "--option", f"threads={threads}", *training]
        # Kits as folders: everything stays on this machine.
        with new_folder(out / "kits") as kits, TemporaryDirectory() as authority:
            Provisioner.create(ProjectFile("demo", config, tuple(self._sites), task=task), Path(authority), kits)

    def encrypted(self) -> list[RoundResult]:
        """Train through ``secagg serve`` and ``secagg site`` processes; `SecAggError` if one of them fails."""
        folder, run_dir = self._folder("encrypted"), self._out / "server"
        with Children() as children:
            server = ServerProcess(children, "server", self._kit(SERVER), run_dir, folder)
            self._start_sites(children, "secagg.cli", ["site"], server.address(), folder)
            self._watch(children, "encrypted", folder)
            server.stop()
        return combine(self._records(folder), server.add_seconds())

    def raw(self) -> list[RoundResult]:
        """Train with plain averaging; `SecAggError` if a site fails."""
        from .raw import RawServer  # with it comes PyTorch, which takes seconds

        folder, count = self._folder("raw"), len(self._sites)
        server = RawServer(count, Tls.load(self._kit(SERVER)))
        try:
            with Children() as children:
                self._start_sites(children, "secagg.demo.raw", [], server.address, folder)
                self._watch(children, "raw", folder)
        finally:
            server.stop()
        times = server.add_seconds
        return combine(self._records(folder), [sum(times[i : i + count]) for i in range(0, len(times), count)])

    def _folder(self, name: str) -> Path:
        folder = self._out / name
        folder.mkdir()
        return folder

    def _kit(self, party: str) -> Path:
        return self._out / "kits" / party

    def _start_sites(self, children: Children, module: str, command: list[str], address: str, folder: Path) -> None:
        for number, site in enumerate(self._sites, 1):
            part, report = f"part={number}/{len(self._sites)}", str(folder / f"{site}.jsonl")
            arguments = [*command, str(self._kit(site)), "--server", address, "--option", part, "--report", report]
            children.start(site, module, [*arguments, *self._options], folder / f"{site}.log")

    def _watch(self, children: Children, name: str, folder: Path) -> None:
        """Wait for the sites to end, and show each round as all sites have done it."""
        shown = 0
        what = f"{show_count(self._rounds, 'round')} of training at {show_count(len(self._sites), 'site')}"
        with progress(f"{name}: {what}") as report:
            while True:
                alive = children.running(set(self._sites))
                records = self._records(folder)
                report(sum(map(len, records)), self._rounds * len(self._sites))
                while shown < min(map(len, records)):
                    here = f"round {shown} ({shown + 1} of {self._rounds})"
                    dice = mean_dice([mine[shown] for mine in records])
                    print(f"{name}: {here}, Dice {dice:.4f}", flush=True)
                    shown += 1
                if not alive:
                    return
                time.sleep(_POLL_SECONDS)

    def _records(self, folder: Path) -> list[list[SiteRecord]]:
        return [read_records(folder / f"{site}.jsonl") for site in self._sites]
