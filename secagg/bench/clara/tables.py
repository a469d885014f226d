"""The tables as they are printed, with Clara's own figures in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table

from .published import MANY, MESSAGE_MB, ROUND_SECONDS, SOURCE, TABLE
from .settings import LEGEND, TITLES
from .summary import PARTS, Interval, Line, lines

_MANY_STEPS = ("encrypt", "decrypt", "upload")


def print_tables(data: Mapping[str, Any]) -> None:
    """Print all that was measured."""
    first = [cell for cell in data["cells"] if cell["seed"] == 0]
    rows = [line for cell in first for line in lines(cell)]
    tables: list[RenderableType] = [published_table(rows, data["rounds"]), increase_table(rows)]
    if data["many"]["rows"]:
        tables.append(many_table(data["many"]))
    if data["targets"]:
        tables.append(targets_table(data["targets"]))
    console = Console()
    wide = Console(width=max(console.width, 120), height=console.height)
    with wide.capture() as capture:  # rich would end the program when the reader of a pipe is gone
        for table in tables:
            wide.print(table)
    print(*(line.rstrip() for line in capture.get().rstrip().splitlines()), sep="\n")


def published_table(rows: Sequence[Line], rounds: int) -> Table:
    """Return the table as NVIDIA has published it, ours and theirs beside each other."""
    caption = (
        f"{LEGEND}\ntraining: {rounds} rounds of the slowest site; + %: over raw, training noise and all; Clara's: 100 "
        f"rounds, the best of 1000 epochs ({SOURCE})"
    )
    table = _table("Clara's table", caption)
    for name in (
        "setting",
        "MB",
        "Clara's",
        "sites",
        "training",
        "Clara's",
        "Dice",
        "round",
        "Clara's",
        "+ %",
        "Clara's",
    ):
        table.add_column(name, justify="left" if name == "setting" else "right", no_wrap=True)
    for line in rows:
        theirs = TABLE.get(line.setting, {}).get(line.sites)
        message = MESSAGE_MB.get(line.setting)
        table.add_row(
            TITLES[line.setting],
            f"{line.nbytes / 1e6:.2f}",
            "–" if message is None else str(message),
            str(line.sites),
            f"{line.seconds:.1f} s",
            "–" if theirs is None else theirs.time,
            f"{line.dice:.3f}",
            str(line.round),
            "–" if theirs is None else f"{theirs.dice:.3f} at {theirs.epoch}",
            "–" if line.setting == "raw" else f"{line.increase:+.1f}",
            "–" if theirs is None or theirs.increase is None else f"{theirs.increase:+.1f}",
        )
    return table


def increase_table(rows: Sequence[Line]) -> Table:
    """Return what a round takes longer than the raw one that stood beside it, step by step."""
    caption = (
        "seconds, each round against the raw one beside it, means; add: the server, all updates; training: the same in "
        "all, what is left of the whole is noise; ±: half of the 95 % interval over rounds; share: what HE adds, of "
        f"Clara's raw round of {ROUND_SECONDS:.0f} s"
    )
    table = _table("What HE adds to a round", caption)
    names = ("setting", "sites", *PARTS, "HE adds", "training", "whole", "share")
    for name in names:
        table.add_column(name, justify="left" if name == "setting" else "right", no_wrap=True)
    for line in rows:
        if line.setting != "raw":
            parts = (f"{line.parts[part]:+.3f}" for part in PARTS)
            share = f"{100 * line.added.mean / ROUND_SECONDS:.2f} %"
            noise = f"{line.noise:+.3f}"
            table.add_row(
                TITLES[line.setting], str(line.sites), *parts, _show(line.added), noise, _show(line.paired), share
            )
    return table


def many_table(many: Mapping[str, Any]) -> Table:
    """Return what a round of many sites takes: mean and standard deviation over them."""
    table = _table(f"{many['sites']} sites, seconds: mean ± standard deviation", f"Clara's: 30 sites; {SOURCE}")
    table.add_column("setting", no_wrap=True)
    for name in ("MB", "Clara's", *(name for step in _MANY_STEPS for name in (step, "Clara's"))):
        table.add_column(name, justify="right", no_wrap=True)
    for row in many["rows"]:
        cells = []
        for step in _MANY_STEPS:
            ours, theirs = row[f"{step}_seconds"], MANY.get(row["setting"], {}).get(step)
            shown = f"{fmean(ours):.3f} ± {stdev(ours):.3f}" if row["setting"] != "raw" or step == "upload" else "–"
            cells += [shown, "–" if theirs is None else f"{theirs[0]:.2f} ± {theirs[1]:.2f}"]
        message = MESSAGE_MB.get(row["setting"])
        table.add_row(
            TITLES[row["setting"]], f"{row['nbytes'] / 1e6:.2f}", "–" if message is None else str(message), *cells
        )
    return table


def targets_table(targets: Sequence[Mapping[str, Any]]) -> Table:
    """Return what was to be shown, and whether it was."""
    table = _table("Targets", "")
    for name in ("what", "measured", "at most", "met", "detail"):
        table.add_column(name)
    for target in targets:
        number = "{:.4f}" if not target["unit"] else "{:.2f} " + target["unit"]
        measured, limit = (number.format(target[name]) for name in ("measured", "limit"))
        table.add_row(target["title"], measured, limit, "yes" if target["met"] else "no", target["detail"])
    return table


def _table(title: str, caption: str) -> Table:
    return Table(
        title=title, title_justify="left", caption=caption, caption_justify="left", box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )  # fmt: skip


def _show(interval: Interval) -> str:
    return f"{interval.mean:+.3f} ± {interval.half:.3f}" if interval.half < float("inf") else f"{interval.mean:+.3f}"
