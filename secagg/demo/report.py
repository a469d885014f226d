"""What the demo shows: a table, ``report.json`` and a picture of the curves."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

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
            for name in ("nbytes", "train_seconds", "encrypt_seconds", "upload_seconds", "decrypt_seconds")
        }
        dice = sum(record.metrics["dice"] for record in records) / len(records)
        results.append(RoundResult(round=records[0].round, dice=dice, add_seconds=add, **mean))
    return results


def print_table(results: dict[str, list[RoundResult]]) -> None:
    """Print one row a round of each federation."""
    from rich.console import Console
    from rich.table import Table

    table = Table(caption="seconds: mean over the sites; add: the server, all updates of the round")
    table.add_column("run")
    for name in ("round", "Dice", "message MB", *(f"{step} s" for step in STEPS)):
        table.add_column(name, justify="right")
    for run, rows in results.items():
        for row in rows:
            seconds = (f"{getattr(row, f'{step}_seconds'):.3f}" for step in STEPS)
            table.add_row(run, str(row.round), f"{row.dice:.4f}", f"{row.nbytes / 1e6:.3f}", *seconds)
        table.add_section()
    console = Console()
    Console(width=max(console.width, 100)).print(table)


def write_report(path: Path, config: Config, seed: int, results: dict[str, list[RoundResult]], seconds: float) -> None:
    """Write everything that was measured, and under which versions, as JSON."""
    report = {
        "config": config.to_dict(),
        "seed": seed,
        "seconds": seconds,
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.system()},
        "versions": {name: version(name) for name in ("secagg", "numpy", "torch", "monai", "grpcio")},
        "runs": {name: [asdict(row) for row in rows] for name, rows in results.items()},
    }
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def write_curves(path: Path, results: dict[str, list[RoundResult]]) -> None:
    """Draw Dice per round, and where the seconds of a round go."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    curves, bars = figure.subplots(1, 2)
    for (run, rows), style in zip(results.items(), ("o-", "x--"), strict=True):
        curves.plot([row.round for row in rows], [row.dice for row in rows], style, label=run)
    curves.set(title="held-out Dice of the global model", xlabel="round", ylabel="Dice", ylim=(0, 1))
    curves.set_xticks([row.round for row in results["raw"]])
    curves.legend(loc="lower right")
    left = [0.0] * len(results)
    for step in STEPS:
        means = [sum(getattr(row, f"{step}_seconds") for row in rows) / len(rows) for rows in results.values()]
        bars.barh(list(results), means, left=left, label=step)
        left = [start + mean for start, mean in zip(left, means, strict=True)]
    bars.set(title="seconds of a round", xlabel="seconds")
    bars.invert_yaxis()
    figure.legend(*bars.get_legend_handles_labels(), loc="outside lower right", ncols=len(STEPS))
    figure.savefig(path, dpi=120)
