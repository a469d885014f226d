"""The verdict as a table, and what to do in words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from verdict import BOUND, CONFIDENCE, Interval, Row

#: Characters that the table needs.
WIDTH = 150


def show(rows: Sequence[Row], commit: str, path: Path) -> None:
    """Print what was found."""
    console = Console(soft_wrap=True)
    wide = Console(width=max(console.width, WIDTH))
    table = Table(title=f"this change against {commit[:12]}", title_justify="left", box=None, header_style="bold")
    table.add_column("benchmark")
    for head in ("base", "change", "ratio", f"{CONFIDENCE:.0%} interval", "wall", "× calibration", "bytes"):
        table.add_column(head, justify="right")
    table.add_column("verdict")
    for row in rows:
        table.add_row(*map(escape, _cells(row)), style="bold red" if row.failures else "")
    wide.print(table)
    failed = [row for row in rows if row.failures]
    for row in failed:
        for failure in row.failures:
            console.print(f"FAIL {row.name}: {failure}", style="bold red", markup=False, highlight=False)
    console.print(
        f"{len(failed)} of {len(rows)} benchmarks failed"
        if failed
        else f"no benchmark is slower by more than the noise, {BOUND - 1:.0%}, and no message larger",
        highlight=False,
    )
    console.print(f"all turns: {path}", highlight=False)


def _cells(row: Row) -> tuple[str, ...]:
    verdict = "FAIL" if row.failures else row.note
    nbytes = "" if row.nbytes is None else f"{row.nbytes:,}"
    if row.cpu is None or row.wall is None or row.seconds is None or row.base_seconds is None:
        return (row.name, "", "", "", "", "", "", nbytes, verdict)
    return (
        row.name,
        _milliseconds(row.base_seconds),
        _milliseconds(row.seconds),
        f"{row.cpu.median:.3f}",
        _interval(row.cpu),
        f"{row.wall.median:.3f}",
        f"{row.calibrated:.2f} {row.calibration}",
        nbytes,
        verdict,
    )


def _interval(found: Interval) -> str:
    return f"{found.low:.3f} … {found.high:.3f}"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"
