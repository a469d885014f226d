"""The federations of the demo, as processes of this machine: one encrypted, one with plain averaging."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from ..config import Config
from ..errors import TransportError
from ..setup import ProjectFile, Provisioner
from ..site.record import SiteRecord, read_records
from ..storage.staging import new_folder
from ..trust import Tls
from ..trust.kit_files import SERVER
from ..ui.progress import progress
from ..ui.units import show_count
from .children import Children
from .report import RoundResult, combine

_START_SECONDS = 60.0
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
    seed : int
        Of network and training.

    Raises
    ------
    ConfigError
        If there are kits in the folder already.
    """

    def __init__(self, out: Path, config: Config, sites: int, rounds: int, seed: int) -> None:
        self._out, self._rounds = out, rounds
        self._sites = [f"site-{number}" for number in range(1, sites + 1)]
        threads = max(1, (os.cpu_count() or 1) // sites)
        self._options = ["--rounds", str(rounds), "--option", f"seed={seed}", "--option", f"threads={threads}"]
        # Kits as folders: everything stays on this machine.
        with new_folder(out / "kits") as kits, TemporaryDirectory() as authority:
            Provisioner.create(ProjectFile("demo", config, tuple(self._sites)), Path(authority), kits)

    def encrypted(self) -> list[RoundResult]:
        """Train through ``secagg serve`` and ``secagg site`` processes; `SecAggError` if one of them fails."""
        folder, run_dir = self._folder("encrypted"), self._out / "server"
        with Children() as children:
            log = folder / "server.log"
            arguments = ["serve", str(self._kit(SERVER)), "--address", "127.0.0.1:0", "--run-dir", str(run_dir)]
            children.start("server", "secagg.cli", arguments, log)
            address = _address(children, log)
            self._start_sites(children, "secagg.cli", ["site"], address, folder)
            self._watch(children, "encrypted", folder)
            children.stop("server")
        lines = (run_dir / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
        completed = [record for record in map(json.loads, lines) if record["outcome"] == "completed"]
        add = [sum(upload["add_seconds"] for upload in record["uploads"]) for record in completed]
        return combine(self._records(folder), add)

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
                    print(f"{name}: {here}, Dice {records[0][shown].metrics['dice']:.4f}", flush=True)
                    shown += 1
                if not alive:
                    return
                time.sleep(_POLL_SECONDS)

    def _records(self, folder: Path) -> list[list[SiteRecord]]:
        return [read_records(folder / f"{site}.jsonl") for site in self._sites]


def _address(children: Children, log: Path) -> str:
    """Return where the server listens, as it says in its log."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        children.running({"server"})
        for line in log.read_text(encoding="utf-8").splitlines():
            if line.startswith("serving on "):
                return line.removeprefix("serving on ")
        time.sleep(_POLL_SECONDS)
    raise TransportError(f"the server did not start within {_START_SECONDS:.0f} s; see {log}")
