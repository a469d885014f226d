"""Progress of long work: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ..setup.progress import Report, silent


@contextmanager
def progress(what: str) -> Iterator[Report]:
    """Show the progress of one piece of work on standard error.

    Parameters
    ----------
    what : str
        What is done, such as ``"round 0 (1 of 4): upload"``. A line of its own if standard error is not a terminal.

    Yields
    ------
    callable
        To be called with the amount done and the total, in any unit.
    """
    if not sys.stderr.isatty():
        print(what, file=sys.stderr, flush=True)
        with silent(what) as report:
            yield report
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
