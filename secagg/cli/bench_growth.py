"""``secagg bench growth``: how cost grows, and what breaks first."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..bench.growth import links
from ..bench.growth.run import FULL, PLANNED, SMALL
from ..bench.growth.run import run as measure
from ..bench.results import Results, check_out
from ..errors import show_size
from ..ui.progress import progress
from ..ui.units import show_seconds

EXAMPLE = """secagg bench growth
secagg bench growth --small --out /tmp/growth.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Measure how time, memory and bytes grow with parameters and sites, simulate links, and say what breaks first.

    Each size is measured in processes of its own, from files. About ten minutes, of which 10⁹ parameters take half;
    they need 16 GB of memory, and what has no room is shown as a row that says so.
    """
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("bench", "growth.json"),
        metavar="FILE",
        help="results, as JSON (default: bench/growth.json)",
    )
    parser.add_argument("--small", action="store_true", help="few small sizes: what CI runs")


def run(options: argparse.Namespace) -> None:
    """Measure, write the results, and print them."""
    check_out(options.out, "growth")
    data = measure(SMALL if options.small else FULL, progress)
    command = ["secagg", "bench", "growth", *(["--small"] if options.small else []), "--out", str(options.out)]
    Results("growth", shlex.join(command), data).save(options.out)
    _print(data)
    print(f"{options.out} is written")


def _print(data: dict[str, Any]) -> None:
    numbers = ("up_nbytes", "down_nbytes", "encrypt_seconds", "add_seconds", "decrypt_seconds")
    memory = ("site_peak_nbytes", "server_peak_nbytes")
    titles = ("up", "down", "encrypt", "add", "decrypt", "site's memory", "server's memory")
    for by, title in (("parameters", f"{PLANNED} sites planned, add: one update"), ("sites", "add: all updates")):
        _table(
            f"by {by} ({title}; memory: above the model, and of the sum)",
            ("setting", by, *titles),
            [
                (
                    row["setting"],
                    f"{row[by]:,}",
                    *(
                        [row["problem"]]
                        if row["problem"]
                        else map(_show, (*numbers, *memory), (row[name] for name in (*numbers, *memory)))
                    ),
                )
                for row in data[by]
            ],
        )
    _print_links(data)
    _table(
        "slopes: exponents of what is beside them, with 95 % intervals",
        ("setting", "what", "slope"),
        [(row["setting"], row["what"], row["words"]) for row in data["slopes"]],
    )
    _table(
        f"limits, with {data['model']['parameters']:,} parameters: the most sites that work, if max_clients reaches it",
        ("what", "setting", "sites", "why"),
        [
            (row["what"], row["setting"] or "", "not reached" if row["at"] is None else f"{row['at']:,}", row["why"])
            for row in data["limits"]
        ],
    )
    _table(
        "extrapolated",
        ("what", "setting", "sites", "value", "how"),
        [
            (row["what"], row["setting"] or "", f"{row['sites']:,}", _unit(row["value"], row["unit"]), row["how"])
            for row in data["extrapolation"]
        ],
    )
    print("what breaks first, of", *data["breaks_first"], "", sep="\n  ")


def _print_links(data: dict[str, Any]) -> None:
    rows = data["links"]
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    cells = {(row["sites"], row["bits_per_second"], row["setting"]): row["round_seconds"] for row in rows}
    raw = {(row["sites"], row["bits_per_second"]): row["raw_round_seconds"] for row in rows}
    _table(
        f"a round over links, simulated, {data['model']['parameters']:,} parameters",
        ("sites", "links", "raw", *settings),
        [
            (
                f"{sites:,}",
                f"{link / 1e6:,.0f} Mbit/s",
                _seconds(seconds),
                *(_seconds(cells[sites, link, setting]) for setting in settings),
            )
            for (sites, link), seconds in sorted(raw.items())
        ],
    )
    print(*(line for line in (links.__doc__ or "").splitlines()[2:]), "", sep="\n")


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(cell.replace("[", r"\[") for cell in row))
    console = Console()
    wide = Console(width=max(console.width, 200), height=console.height, highlight=False)
    with wide.capture() as capture:
        wide.print(table)
    print(title)
    print(*(line.rstrip() for line in capture.get().splitlines()), sep="\n")


def _show(name: str, value: float) -> str:
    return show_size(int(value)) if name.endswith("nbytes") else _seconds(value)


def _unit(value: float, unit: str) -> str:
    if unit == "B":
        return show_size(int(value))
    return _seconds(value) if unit == "s" else f"{value:,.0f} {unit}"


def _seconds(value: float) -> str:
    if value >= 100:
        return show_seconds(value)
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"
