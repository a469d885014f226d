"""``secagg demo``: a whole federation on this machine, encrypted and, for comparison, raw."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..backends.registry import load_backend
from ..config import ENCRYPT_CHOICES, Config
from ..demo.children import Children
from ..demo.report import RoundResult, combine, print_table, write_curves, write_report
from ..demo.task import check_least
from ..errors import ConfigError, TransportError
from ..scheme.presets import PRESETS
from ..setup.project_file import ProjectFile
from ..site.record import SiteRecord, read_records
from ..storage.staging import new_folder
from ..ui.progress import progress
from ..ui.units import show_count

EXAMPLE = """secagg demo --sites 3 --rounds 4 --backend pyfhel --encrypt conv
secagg demo --preset smallest"""

_START_SECONDS = 60.0
_POLL_SECONDS = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Train three sites on a brain MRI through a server on this machine: encrypted, then raw, and compare."""
    parser.add_argument("--sites", type=int, default=3, help="number of sites, 2 to 24 (default: 3)")
    parser.add_argument("--rounds", type=int, default=4, help="rounds of training (default: 4)")
    parser.add_argument("--backend", metavar="LIB", help="he.lib under Clara's CKKS params (default: tenseal)")
    parser.add_argument("--preset", choices=PRESETS, help="he.preset: backend, scheme and params by name")
    parser.add_argument("--encrypt", choices=ENCRYPT_CHOICES, help="what is encrypted (default: all)")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="configuration in place of both; --backend changes its he.lib"
    )
    parser.add_argument("--seed", type=int, default=0, help="of network and training (default: 0)")
    parser.add_argument("--run-dir", type=Path, metavar="FOLDER", help="new folder for all output (default: runs/DATE)")


def run(options: argparse.Namespace) -> None:
    """Run both federations, print the table, write ``report.json`` and ``curves.png``."""
    start = time.perf_counter()
    check_least("--seed", options.seed, 0)
    rounds, config = check_least("--rounds", options.rounds), demo_config(options)
    out = options.run_dir or Path("runs", datetime.now().strftime("demo-%Y%m%d-%H%M%S"))
    sites = [f"site-{number}" for number in range(1, options.sites + 1)]
    _make_kits(config, out / "kits", sites)
    print(
        f"{show_count(options.sites, 'site')}, {show_count(rounds, 'round')}, {config.lib} {config.params.scheme}, "
        f"encrypt {config.encrypt.to_value()}; see {out}"
    )
    federation = _Federation(out, sites, rounds, options.seed)
    results = {"encrypted": federation.encrypted(), "raw": federation.raw()}
    seconds = time.perf_counter() - start
    write_report(out / "report.json", config, options.seed, results, seconds)
    write_curves(out / "curves.png", results)
    print_table(results)
    last = {name: rows[-1].dice for name, rows in results.items()}
    print(
        f"held-out Dice after {show_count(rounds, 'round')}: {last['encrypted']:.4f} encrypted, {last['raw']:.4f} raw, "
        f"difference {abs(last['encrypted'] - last['raw']):.4f}"
    )
    print(f"{seconds:.0f} s in all; {out / 'report.json'}, {out / 'curves.png'}")


def _make_kits(config: Config, folder: Path, sites: list[str]) -> None:
    """Provision the demo's federation; its kits are folders, as everything stays on this machine."""
    from ..setup.provisioner import Provisioner

    with new_folder(folder) as kits, TemporaryDirectory() as authority:
        Provisioner.create(ProjectFile("demo", config, tuple(sites)), Path(authority), kits)


def demo_config(options: argparse.Namespace) -> Config:
    """Return the configuration: that of a file, of a preset, or Clara's, with what the options change.

    Raises
    ------
    ConfigError
        If it is invalid, its options contradict each other, or it needs more sites than the demo has.
    """
    for other in ("backend", "config"):
        if options.preset is not None and getattr(options, other) is not None:
            raise ConfigError(f"--preset names backend and params, and so does --{other}: give one of them")
    if not 2 <= options.sites <= 24:
        raise ConfigError(f"--sites is {options.sites}; the demo's data can be shared by 2 to 24 sites")
    if options.config is not None:
        data = Config.load(options.config).to_dict()
    else:
        aggregation = {"min_clients": 2, "max_clients": 30, "max_abs": 0.5, "max_weight": 32}
        data = {"he": {"preset": options.preset or "clara"}, "encrypt": "all", "aggregation": aggregation}
        data = Config.from_dict(data).to_dict()
    if options.backend is not None:
        data["he"] = _with_backend(data["he"], options.backend)
    if options.encrypt is not None:
        data["encrypt"] = options.encrypt
    config = Config.from_dict(data)
    if config.aggregation.min_clients > options.sites:
        raise ConfigError(
            f"min_clients is {config.aggregation.min_clients}, the demo has {options.sites} sites: use --sites"
        )
    # No round may end before the slowest site has joined.
    return replace(config, aggregation=replace(config.aggregation, min_clients=options.sites))


def _with_backend(he: Mapping[str, Any], lib: str) -> dict[str, Any]:
    """Return an ``he`` block for another backend, which perhaps cannot have seeded updates."""
    backend = load_backend(lib)
    config = dict(he["config"])
    if config["scheme"] not in backend.schemes:
        presets = [f"--preset {name}, or " for name, block in PRESETS.items() if block["lib"] == lib]
        raise ConfigError(
            f"--backend {lib} knows {', '.join(backend.schemes)}, not {config['scheme']}: "
            f"use {''.join(presets)}--config with params for it"
        )
    if "seeded" in config:
        config["seeded"] = config["seeded"] and backend.symmetric
    return {"lib": lib, "config": config}


class _Federation:
    """The processes of one demo, its folders, and how far they are."""

    def __init__(self, out: Path, sites: list[str], rounds: int, seed: int) -> None:
        self._out, self._sites, self._rounds = out, sites, rounds
        threads = max(1, (os.cpu_count() or 1) // len(sites))
        self._options = ["--rounds", str(rounds), "--option", f"seed={seed}", "--option", f"threads={threads}"]

    def encrypted(self) -> list[RoundResult]:
        """Train through ``secagg serve`` and ``secagg site`` processes."""
        folder, run_dir = self._folder("encrypted"), self._out / "server"
        with Children() as children:
            log = folder / "server.log"
            arguments = [
                "serve",
                str(self._out / "kits" / "server"),
                "--address",
                "127.0.0.1:0",
                "--run-dir",
                str(run_dir),
            ]
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
        """Train with plain averaging."""
        from ..demo.raw import RawServer
        from ..trust import Tls

        folder, count = self._folder("raw"), len(self._sites)
        server = RawServer(count, Tls.load(self._out / "kits" / "server"))
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

    def _start_sites(self, children: Children, module: str, command: list[str], address: str, folder: Path) -> None:
        for number, site in enumerate(self._sites, 1):
            kit, report = str(self._out / "kits" / site), str(folder / f"{site}.jsonl")
            part = f"part={number}/{len(self._sites)}"
            arguments = [*command, kit, "--server", address, "--option", part, "--report", report, *self._options]
            children.start(site, module, arguments, folder / f"{site}.log")

    def _watch(self, children: Children, name: str, folder: Path) -> None:
        """Wait for the sites to end, and show each round as all sites have done it."""
        shown = 0
        with progress(
            f"{name}: {show_count(self._rounds, 'round')} of training at {show_count(len(self._sites), 'site')}"
        ) as report:
            while True:
                alive = children.running(set(self._sites))
                records = self._records(folder)
                report(sum(map(len, records)), self._rounds * len(self._sites))
                while shown < min(map(len, records)):
                    dice = records[0][shown].metrics["dice"]
                    print(f"{name}: round {shown} ({shown + 1} of {self._rounds}), Dice {dice:.4f}", flush=True)
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
