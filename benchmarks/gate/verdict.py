"""What the times say: medians of paired ratios, their intervals, and whether a benchmark has become worse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np
from pairing import Measured
from scipy.stats import quantile_test
from trees import SIDES, GateError

#: An interval that lies above this as a whole is no noise; of CPU time, which other programs disturb less.
BOUND = 1.05
#: The same of time on the wall: for what CPU time does not see, waiting and cores that are not used any more.
WALL_BOUND = 1.25
CONFIDENCE = 0.99


@dataclass(frozen=True)
class Interval:
    """A median, and where it lies with a confidence of `CONFIDENCE`: by ranks, with no assumption on the noise."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        found = quantile_test(values, p=0.5).confidence_interval(CONFIDENCE)
        return cls(float(np.median(values)), float(found.low), float(found.high))


@dataclass(frozen=True)
class Row:
    """One benchmark's verdict; sizes in bytes, times in seconds of CPU a repeat."""

    name: str
    failures: tuple[str, ...]
    note: str
    nbytes: int | None = None
    base_nbytes: int | None = None
    base_seconds: float | None = None
    seconds: float | None = None
    cpu: Interval | None = None
    wall: Interval | None = None
    calibrated: float | None = None
    calibration: str = ""

    def history(self) -> dict[str, Any]:
        """What is kept of it in the history."""
        assert self.cpu is not None
        return {
            "name": self.name,
            "ratio": self.cpu.median,
            "low": self.cpu.low,
            "high": self.cpu.high,
            "calibrated": self.calibrated,
            "nbytes": self.nbytes,
        }


def ratios(turns: Mapping[str, Mapping[str, Sequence[float]]], clock: str) -> list[float]:
    """Return change / base of each block of four turns: the geometric mean of its two pairs."""
    base, change = (np.array(turns[side][clock]).reshape(-1, 2) for side in SIDES)
    return [float(ratio) for ratio in np.exp(np.log(change / base).mean(axis=1))]


def judge(name: str, measured: Measured, sizes_changed: bool) -> Row:
    """Return the verdict on one benchmark.

    Parameters
    ----------
    name : str
        Of the benchmark.
    measured : Measured
        Of both sides.
    sizes_changed : bool
        Whether the change has other sizes recorded: then growth is reported, and does not fail.
    """
    nbytes, base_nbytes = measured.nbytes.get("change"), measured.nbytes.get("base")
    if "change" in measured.problems:
        return Row(name, (f"the change cannot run it: {measured.problems['change']}",), "broken")
    if "base" in measured.problems:
        return Row(name, (), f"new: the base cannot run it ({measured.problems['base']})", nbytes)
    cpu, wall = (Interval.of(ratios(measured.turns, clock)) for clock in ("cpu", "wall"))
    failures, notes = [], []
    if cpu.low > BOUND:
        failures.append(
            f"takes {cpu.median:.2f} × the base's CPU time (99 % interval {cpu.low:.2f} to {cpu.high:.2f}, up to "
            f"{BOUND} is noise): look in `git diff` of the base for what it does more, or profile it"
        )
    elif wall.low > WALL_BOUND:
        failures.append(
            f"takes {wall.median:.2f} × the base's time on the wall (99 % interval {wall.low:.2f} to {wall.high:.2f}, "
            f"up to {WALL_BOUND} is noise), and no more CPU time: look for what waits, or for a core that is not used"
        )
    elif cpu.high < 1 / BOUND:
        notes.append("faster")
    if nbytes is not None and base_nbytes is not None and nbytes != base_nbytes:
        grown = nbytes - base_nbytes
        notes.append(f"{abs(grown):,} bytes {'more' if grown > 0 else 'fewer'}")
        if grown > 0 and not sizes_changed:
            failures.append(
                f"sends {nbytes:,} bytes, {grown:,} more than the base: if that is meant, commit the new "
                "benchmarks/sizes.csv with it (`make sizes`)"
            )
    change_cpu = np.array(measured.turns["change"]["cpu"]).reshape(-1, 2).mean(axis=1)
    return Row(
        name,
        tuple(failures),
        ", ".join(notes) or "same",
        nbytes,
        base_nbytes,
        median(measured.turns["base"]["cpu"]),
        median(measured.turns["change"]["cpu"]),
        cpu,
        wall,
        float(np.median(change_cpu / np.array(measured.calibrations))),
        measured.calibration[0],
    )


def check_compared(rows: Sequence[Row]) -> None:
    """Raise `GateError` if the base can run none of the benchmarks: that none is slower says nothing then."""
    if all(row.cpu is None and not row.failures for row in rows):
        raise GateError(f"the base can run none of {len(rows)} benchmarks, and nothing was compared: {rows[0].note}")


def as_json(rows: Sequence[Row], measured: Mapping[str, Measured]) -> dict[str, Any]:
    """Return all that was measured and found."""
    return {
        "bound": BOUND,
        "confidence": CONFIDENCE,
        "rows": [asdict(row) for row in rows],
        "turns": {name: asdict(found) for name, found in measured.items()},
    }
