"""Times of several sides that take turns, so that a slower minute of the machine is a slower minute of all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

from ..setup.progress import Report


def stopwatch(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds on the wall that something takes, and what it returns."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def take_turns(
    sides: Mapping[str, Callable[[], object]], rounds: int, report: Report | None = None
) -> dict[str, list[float]]:
    """Return the seconds that each side takes in each round; a first round, which warms up, is not counted.

    Parameters
    ----------
    sides : mapping of str to callable
        What is measured, by name.
    rounds : int
        How often each has its turn.
    report : callable, optional
        Is told of each turn done, and of how many there are.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    turns = [(number, name) for number in range(rounds + 1) for name in sides]
    for done, (number, name) in enumerate(turns):
        if report is not None:
            report(done, len(turns))
        elapsed, _ = stopwatch(sides[name])
        if number:
            seconds[name].append(elapsed)
    if report is not None:
        report(len(turns), len(turns))
    return seconds


def paired_ratio(one: list[float], other: list[float]) -> float:
    """Return the median of the ratios of turns that stood beside each other."""
    return median(mine / theirs for mine, theirs in zip(one, other, strict=True))
