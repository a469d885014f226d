"""Tables as people read them: the same text on a terminal, in a pipe and in a file."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


class Row(NamedTuple):
    """Cells of a row, and how rich shows it: ``"bold"``, ``"dim"`` or ``""``."""

    cells: Sequence[str]
    style: str = ""


def print_table(texts: Sequence[str], numbers: Sequence[str], rows: Iterable[Row]) -> None:
    """Print a table.

    Parameters
    ----------
    texts, numbers : sequence of str
        Titles of its columns: the first ones, of texts, and the others, of numbers, which are set to the right.
    rows : iterable of Row
        The rows.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for title in texts:
        table.add_column(title, no_wrap=True)
    for title in numbers:
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        # Text in brackets would be read as markup.
        table.add_row(*(cell.replace("[", r"\[") for cell in row.cells), style=row.style)
    console = Console()
    # Rather wrapped by the terminal than cut; without a height, rich takes a dumb terminal's width instead.
    wide = Console(width=max(console.width, 160), height=console.height, highlight=False)
    with wide.capture() as capture:  # rich would end the program when the reader of a pipe is gone
        wide.print(table)
    print(*(line.rstrip() for line in capture.get().rstrip().splitlines()), sep="\n")


def wrapped(texts: Iterable[str], width: int = 80) -> list[str]:
    """Return texts in lines of at most `width` characters, what goes on in the next line indented."""
    return [line for text in texts for line in textwrap.wrap(text, width, subsequent_indent="  ")]


def unit_for(nbytes: float) -> tuple[float, str]:
    """Return the unit that a column takes whose largest size this is: its bytes, and its name."""
    return next(((unit, name) for unit, name in _UNITS if nbytes >= unit), _UNITS[-1])


def show_time(seconds: float) -> str:
    """Return a time in three digits: 87.1 µs, 4.21 ms, 12.3 s, 15 min."""
    if seconds >= 600:
        return f"{seconds / 60:.0f} min"
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 0.9995:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"
