"""Numbers for readers, to three digits, the same on every machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from ..results import Results


def show_bytes(nbytes: float) -> str:
    """Return a size: 15.6 MB, 2.4 GB."""
    return _scaled(nbytes, ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B")))


def show_time(seconds: float) -> str:
    """Return a time: 3.59 s, 58.0 ms, 12.5 min."""
    if seconds >= 600:
        return _scaled(seconds, ((86400, "d"), (3600, "h"), (60, "min")))
    return _scaled(seconds, ((1, "s"), (1e-3, "ms"), (1e-6, "µs"))) if seconds else "0 s"


def show_seconds(seconds: float) -> str:
    """Return a time for an axis: never in minutes, so that powers of ten stay such."""
    return f"{seconds:g} s" if seconds >= 1 else show_time(seconds)


def show_count(number: float) -> str:
    """Return a number of parameters or sites: 30, 4.7 M, 1 G."""
    factor, unit = next((pair for pair in ((1e9, " G"), (1e6, " M"), (1e3, " k")) if number >= pair[0]), (1, ""))
    return f"{number / factor:.3g}{unit}" if unit != " k" or number >= 1e4 else f"{number:,.0f}"


def show_number(value: float) -> str:
    """Return a number to three digits: 0.0342, 1.53, 128, 1,024, 3.1e-08."""
    if not value:
        return "0"
    size = abs(value)
    if 99.95 <= size < 1e6:
        return f"{value:,.0f}"
    if not 1e-3 <= size < 1e6:
        return f"{value:.1e}"
    places = 1 if size >= 9.995 else 2 if size >= 0.9995 else 3 if size >= 0.09995 else 4 if size >= 0.009995 else 5
    return f"{value:.{places}f}"


def show_ratio(value: float) -> str:
    """Return how many times: 0.83 ×, 24.5 ×, 290 ×."""
    return f"{value:.2f} ×" if 0.01 <= value < 9.995 else f"{show_number(value)} ×"


def show_target(row: Mapping[str, Any]) -> str:
    """Return what a row of targets asks for: ≤ 1 × TenSEAL's own."""
    return f"{'≥' if row['at_least'] else '≤'} {row['limit']:g} {row['unit']}"


def show_machine(machine: Mapping[str, Any]) -> str:
    """Return the processor, and how many cores of it."""
    return f"{machine['cores']} core{'' if machine['cores'] == 1 else 's'} of {machine['processor']}"


def show_source(results: Results) -> str:
    """Return when and on what results were measured."""
    return f"{results.date[:10]}, {show_machine(results.machine)}"


def mid(values: Sequence[float]) -> float:
    """Return the median of the repetitions."""
    return float(median(values))


def done(results: Results) -> list[Mapping[str, Any]]:
    """Return the rows that were measured: those without a problem."""
    return [row for row in results.data["rows"] if not row.get("problem")]


def _scaled(value: float, units: Sequence[tuple[float, str]]) -> str:
    factor, unit = next((pair for pair in units if value >= 0.9995 * pair[0]), units[-1])
    number = value / factor
    return f"{number:.{0 if number >= 99.95 else 1 if number >= 9.995 else 2}f} {unit}"
