"""What is to be shown against NVFlare's HE, of the same run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from ..turns import paired_ratio
from .run import Row

_THEIRS = "nvflare-he"
_BEST = "best"


@dataclass(frozen=True)
class Target:
    """One claim: how many times less ours takes than NVFlare's HE.

    Parameters
    ----------
    name : str
        Whose: a row's, or ``"best"``.
    what : str
        Of what.
    limit : float
        At least so many times.
    """

    name: str
    what: str
    limit: float


TARGETS = (
    Target("tenseal", "upload", 2.8),
    Target("tenseal", "server, a client", 20),
    Target("tenseal", "server memory", 10),
    Target("tenseal", "encrypt + serialise", 1),
    Target("seal-bgv-16", "upload", 20),
    Target("seal-bgv-16", "encrypt + serialise", 6),
    Target(_BEST, "upload", 34),
    Target(_BEST, "encrypt + serialise", 80),
    Target(_BEST, "server, a client", 300),
)

#: Of a row: the ratio of another's to its own, and both as text.
_RATIOS: Mapping[str, Callable[[Row, Row], tuple[float, str]]] = {
    "upload": lambda theirs, ours: (
        theirs.up_nbytes / ours.up_nbytes,
        f"{_mb(ours.up_nbytes)} of {_mb(theirs.up_nbytes)}",
    ),
    "server, a client": lambda theirs, ours: _times(theirs.add_seconds, ours.add_seconds),
    "server memory": lambda theirs, ours: (
        theirs.server_peak_nbytes / max(1, ours.server_peak_nbytes),
        f"{_mb(ours.server_peak_nbytes)} of {_mb(theirs.server_peak_nbytes)}",
    ),
    "encrypt + serialise": lambda theirs, ours: _times(theirs.encode_seconds, ours.encode_seconds),
}


def targets(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return each target with what was measured for it; those of peers that were not are left out."""
    return list(_targets({row.name: row for row in rows if row.problem is None}))


def _targets(rows: Mapping[str, Row]) -> Iterator[dict[str, Any]]:
    theirs, ours = rows.get(_THEIRS), [row for row in rows.values() if row.group == "secagg"]
    if theirs is None or not ours:
        return
    named = {**rows, _BEST: min(ours, key=lambda row: median(row.encode_seconds) * row.up_nbytes)}
    for target in TARGETS:
        row = named.get(target.name)
        if row is None:
            continue
        measured, detail = _RATIOS[target.what](theirs, row)
        best = "the best of secagg, " if target.name == _BEST else ""
        yield {
            "title": f"{target.what}: {best}{row.title} against {theirs.title}",
            "measured": measured,
            "limit": target.limit,
            "at_least": True,
            "unit": "× less",
            "met": measured >= target.limit,
            "detail": detail,
        }


def _times(theirs: list[float], ours: list[float]) -> tuple[float, str]:
    return paired_ratio(theirs, ours), f"{_time(median(ours))} of {_time(median(theirs))}"


def _mb(nbytes: int) -> str:
    return f"{nbytes / 1e6:.1f} MB"


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
