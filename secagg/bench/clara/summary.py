"""What the rounds say: the published columns, what encryption adds, and how far the Dice is from the raw one's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from scipy import stats

from .published import ROUND_SECONDS

#: Steps that encryption changes; raw messages, too, are uploaded, added and downloaded.
PARTS = ("encrypt", "upload", "add", "download", "decrypt")

_CONFIDENCE = 0.95

#: Per cent of Clara's raw round that encryption may add, by setting.
_ADDED_LIMITS = {"full": 5.0, "exact": 1.0, "smallest": 1.0}

#: Of the difference of the Dice.
_DICE_LIMIT = 0.02

Row = Mapping[str, Any]
Cell = Mapping[str, Any]


@dataclass(frozen=True)
class Interval:
    """A mean, and its 95 % interval by Student's t; of one value, there is none."""

    mean: float
    low: float = -math.inf
    high: float = math.inf

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """Return the interval of the mean of values."""
        mean = fmean(values)
        if len(values) < 2:
            return cls(mean)
        half = float(stats.t.ppf((1 + _CONFIDENCE) / 2, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
        return cls(mean, mean - half, mean + half)

    @property
    def half(self) -> float:
        """Half of its width."""
        return (self.high - self.low) / 2

    @property
    def farthest(self) -> float:
        """Its end that is farther from 0, without a sign."""
        return max(abs(self.low), abs(self.high))


@dataclass(frozen=True)
class Line:
    """One setting of one cell, with the published columns.

    Parameters
    ----------
    setting : str
        As of `settings.TITLES`.
    sites : int
        How many.
    nbytes : float
        Mean size of a message.
    seconds : float
        Of all rounds.
    dice : float
        The best of all rounds.
    round : int
        The first that had it.
    increase : float
        Of the seconds over those of the raw run of the cell, in per cent, training noise and all.
    paired : Interval
        Seconds that a round takes longer than the raw run's same round.
    parts : mapping of str to float
        Seconds that each step of a round takes longer than the raw one's, the mean over rounds: `PARTS`.
    added : Interval
        The sum of these parts: what encryption adds to a round.
    """

    setting: str
    sites: int
    nbytes: float
    seconds: float
    dice: float
    round: int
    increase: float
    paired: Interval
    parts: Mapping[str, float]
    added: Interval

    @property
    def noise(self) -> float:
        """What is left of the paired difference of a round without those parts: training, which is the same."""
        return self.paired.mean - self.added.mean


def lines(cell: Cell) -> list[Line]:
    """Return what the published table says of each setting of a cell."""
    settings = list(dict.fromkeys(row["setting"] for row in cell["rows"]))
    return [_line(cell, setting) for setting in settings]


def best(rows: Sequence[Row]) -> Row:
    """Return the first row that has the best Dice."""
    return max(rows, key=lambda row: (row["dice"], -row["round"]))


def rows_of(cell: Cell, setting: str) -> list[Row]:
    """Return the rounds of a setting of a cell, in order."""
    return sorted((row for row in cell["rows"] if row["setting"] == setting), key=lambda row: int(row["round"]))


def _line(cell: Cell, setting: str) -> Line:
    rows, raw = rows_of(cell, setting), rows_of(cell, "raw")
    seconds, raw_seconds = (sum(row["round_seconds"] for row in run) for run in (rows, raw))
    pairs = list(zip(rows, raw, strict=True))
    top = best(rows)
    return Line(
        setting=setting,
        sites=cell["sites"],
        nbytes=fmean(row["nbytes"] for row in rows),
        seconds=seconds,
        dice=top["dice"],
        round=top["round"],
        increase=100 * (seconds / raw_seconds - 1),
        paired=Interval.of([row["round_seconds"] - other["round_seconds"] for row, other in pairs]),
        parts={
            part: fmean(row[f"{part}_seconds"] - other[f"{part}_seconds"] for row, other in pairs) for part in PARTS
        },
        added=Interval.of([_sum(row) - _sum(other) for row, other in pairs]),
    )


def _sum(row: Row) -> float:
    return float(sum(row[f"{part}_seconds"] for part in PARTS))


def dice_differences(cells: Sequence[Cell], setting: str, sites: int, last: bool = False) -> list[float]:
    """Return the Dice of raw − encrypted for each seed at so many sites: of the best rounds, or of the last ones."""
    differences = []
    for cell in cells:
        rows, raw = rows_of(cell, setting), rows_of(cell, "raw")
        if cell["sites"] == sites and rows and raw:
            one, other = (run[-1] if last else best(run) for run in (raw, rows))
            differences.append(one["dice"] - other["dice"])
    return differences


def targets(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Return what is asked of a run, and whether it holds; the Dice only where there are two seeds or more."""
    first = [cell for cell in cells if cell["seed"] == 0]
    found = []
    for setting, limit in _ADDED_LIMITS.items():
        added = {line.sites: line.added.mean for cell in first for line in lines(cell) if line.setting == setting}
        seconds = ", ".join(f"{sites} sites: {mean:.2f} s" for sites, mean in added.items())
        title = f"{setting}: what HE adds to a round, of Clara's raw round of {ROUND_SECONDS:.0f} s"
        detail = f"mean over the rounds, {seconds}; the worst counts"
        found.append(_target(title, 100 * max(added.values()) / ROUND_SECONDS, limit, "%", detail))
    least = min(cell["sites"] for cell in cells)
    raw = fmean(best(rows_of(cell, "raw"))["dice"] for cell in cells if cell["sites"] == least)
    for setting in _ADDED_LIMITS:
        differences = dice_differences(cells, setting, least)
        if len(differences) < 2:
            continue
        of_best, of_last = (
            Interval.of(values) for values in (differences, dice_differences(cells, setting, least, last=True))
        )
        detail = (
            f"{len(differences)} seeds at {least} sites, best rounds: {_show(of_best)}; last: {_show(of_last)}; "
            f"raw's best: {raw:.3f}"
        )
        title = f"{setting}: Dice raw − encrypted, the farther end of the paired 95 % interval"
        found.append(_target(title, of_best.farthest, _DICE_LIMIT, "", detail))
    return found


def _show(interval: Interval) -> str:
    return f"{interval.mean:+.4f} in [{interval.low:+.4f}, {interval.high:+.4f}]"


def _target(title: str, measured: float, limit: float, unit: str, detail: str) -> dict[str, Any]:
    return {
        "title": title,
        "measured": measured,
        "limit": limit,
        "at_least": False,
        "unit": unit,
        "met": measured <= limit,
        "detail": detail,
    }
