"""How fast a round is added where its updates lie, against reading the same bytes through fsspec and dropping them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from ...setup.progress import Report
from ...shards import ThreadPool, aggregate
from ...shards.ranges import AHEAD
from ...storage import objects
from ...storage.pinned import WINDOW_NBYTES
from ...trust.kit import load_server_kit
from ..turns import paired_ratio
from .updates import ROUND, Round

#: Workers whose speeds are compared.
WORKERS = (1, 2)

Clock = Callable[[], float]


def measure(
    round: Round,
    place: str,
    turns: int,
    shards: int | None = None,
    server: Clock = lambda: 0.0,
    before: Callable[[], None] = lambda: None,
    report: Report = lambda done, total: None,
) -> dict[str, Any]:
    """Let reading alone and the sum take turns.

    Parameters
    ----------
    round : Round
        The updates.
    place : str
        Where they lie, and the sum for a while.
    turns : int
        How often each has its turn, after one that is not counted.
    shards : int, optional
        Number of ranges.
    server : callable, optional
        Returns the CPU seconds of the store's process, where it is on this machine.
    before : callable, optional
        Called before each turn.
    report : callable, optional
        Told of turns done, and of how many there are.

    Returns
    -------
    mapping
        ``read_1``, ``sum_1``, ``read_2``, ``sum_2``: of each turn the seconds on the wall, those of this process's CPU,
        and those of the store's; the numbers are workers. ``heads_seconds``: of the first pass over all heads, median.
    """
    heads: list[float] = []
    sizes = {url: objects.pin(url).nbytes for url in round.urls}
    sides = {
        f"{what}_{workers}": partial(work, workers)
        for workers in WORKERS
        for what, work in (("read", partial(_read, sizes)), ("sum", partial(_sum, round, place, shards, heads)))
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for turn in range(turns + 1):
        for number, (name, side) in enumerate(sides.items()):
            report(turn * len(sides) + number, (turns + 1) * len(sides))
            before()
            wall, cpu, theirs = time.perf_counter(), time.process_time(), server()
            side()
            spent = {
                "seconds": time.perf_counter() - wall,
                "cpu_seconds": time.process_time() - cpu,
                "store_cpu_seconds": server() - theirs,
            }
            if turn:
                found[name].append(spent)
    report(1, 1)
    return {**found, "heads_seconds": median(heads)}


def seconds(row: Mapping[str, Any], side: str, what: str = "seconds") -> float:
    """Return the median of a side's turns."""
    return float(median(turn[what] for turn in row[side]))


def ratio(row: Mapping[str, Any], one: str, other: str) -> float:
    """Return the median of what turns of `one` took by those of `other` beside them."""
    return paired_ratio(*([turn["seconds"] for turn in row[side]] for side in (one, other)))


def scaling(row: Mapping[str, Any]) -> float:
    """Return how much two workers add by what one adds, by how much more two readers read than one."""
    gains = (
        (one["seconds"] / two["seconds"]) / (bare["seconds"] / pair["seconds"])
        for one, two, bare, pair in zip(row["sum_1"], row["sum_2"], row["read_1"], row["read_2"], strict=True)
    )
    return float(median(gains))


def _sum(round: Round, place: str, shards: int | None, heads: list[float], workers: int) -> None:
    target, start = f"{place}/sum", time.perf_counter()
    aggregate(
        load_server_kit(Path(round.kit)),
        round.urls,
        target,
        ROUND,
        pool=ThreadPool(workers),
        shards=shards,
        began=lambda job: heads.append(time.perf_counter() - start),
    )
    objects.remove([target])


def _read(sizes: Mapping[str, int], workers: int) -> None:
    """Read in windows, as many at a time as workers do, by what fsspec itself has for it."""
    import fsspec

    url = next(iter(sizes))
    files = fsspec.filesystem(url.partition("://")[0] if objects.is_url(url) else "file")

    def read(window: tuple[str, int, int]) -> int:
        path, start, end = window
        return len(files.cat_file(path, start=start, end=end))

    windows = [
        (path, at, min(at + WINDOW_NBYTES, size))
        for path, size in sizes.items()
        for at in range(0, size, WINDOW_NBYTES)
    ]
    with ThreadPoolExecutor(AHEAD * workers) as executor:
        assert sum(executor.map(read, windows)) == sum(sizes.values())
