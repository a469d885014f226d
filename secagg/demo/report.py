"""What the demo reports: a table and ``report.json``."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..config import Config
from ..site.record import SiteRecord

#: Steps whose seconds are compared, in the order in which they happen.
STEPS = ("train", "encrypt", "upload", "add", "decrypt")


@dataclass(frozen=True)
class RoundResult:
    """One round of one federation: means over the sites, and the seconds that the server took to add all updates."""

    round: int
    dice: float
    nbytes: float
    train_seconds: float
    encrypt_seconds: float
    upload_seconds: float
    add_seconds: float
    decrypt_seconds: float


def combine(sites: Sequence[Sequence[SiteRecord]], add_seconds: Sequence[float]) -> list[RoundResult]:
    """Return the rounds of a federation from the records of its sites, and the server's seconds a round."""
    results = []
    for records, add in zip(zip(*sites, strict=True), add_seconds, strict=True):
        mean = {
            name: sum(getattr(record, name) for record in records) / len(records)
            for name in ("train_seconds", "encrypt_seconds", "upload_seconds", "decrypt_seconds")
        }
        nbytes = sum(record.nbytes + record.calibration_nbytes for record in records) / len(records)
        dice = mean_dice(records)
        results.append(RoundResult(round=records[0].round, dice=dice, nbytes=nbytes, add_seconds=add, **mean))
    return results


def mean_dice(records: Sequence[SiteRecord]) -> float:
    """Return the mean over the sites, which hold out the same cubes of MNI152, and each its own cases of own data."""
    return sum(record.metrics["dice"] for record in records) / len(records)


def print_table(results: dict[str, list[RoundResult]]) -> None:
    """Print one row a round of each federation."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    caption = "MB: what a site uploads; then seconds, means over the sites; add: the server, all updates of a round"
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=caption, caption_justify="left")
    table.add_column("run", no_wrap=True)
    for name in ("round", "Dice", "MB", *STEPS):
        table.add_column(name, justify="right", no_wrap=True)
    for run, rows in results.items():
        for row in rows:
            seconds = [getattr(row, f"{step}_seconds") for step in STEPS]
            cells = (f"{time:.3f}" if time else "–" for time in seconds)
            table.add_row(run, str(row.round), f"{row.dice:.4f}", f"{row.nbytes / 1e6:.3f}", *cells)
        table.add_section()
    console = Console()
    Console(width=max(console.width, 80)).print(table)


def write_report(
    path: Path, config: Config, trained: Mapping[str, Any], results: dict[str, list[RoundResult]], seconds: float
) -> None:
    """Write what was `trained`, everything that was measured, and under which versions, as JSON."""
    report = {
        "config": config.to_dict(),
        **trained,
        "seconds": seconds,
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.system()},
        "versions": {name: version(name) for name in ("secagg", "numpy", "torch", "monai", "grpcio")},
        "runs": {name: [asdict(row) for row in rows] for name, rows in results.items()},
    }
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
