"""What a run of the benchmarks has to say: two tables and a JSON file."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import secagg_ext

LIBRARIES = ("secagg", "numpy", "tenseal", "Pyfhel", "blake3", "zstandard")


@dataclass(frozen=True)
class Target:
    """One requirement: `measured` must be at most `limit`, a number of `unit`."""

    title: str
    limit: float
    unit: str


#: Every requirement, in the order of the table. Ratios are of medians of one run.
TARGETS = {
    "size-tenseal": Target("update size, tenseal", 12.6, "× raw float32"),
    "size-pyfhel": Target("update size, pyfhel", 12.6, "× raw float32"),
    "encrypt": Target("encrypt + to_bytes, tenseal", 1.15, "× TenSEAL's own"),
    "encrypt-memory": Target("encrypt + to_bytes, memory above start", 300, "MB"),
    "add": Target("from_bytes + add, all checks included", 0.3, "× TenSEAL's own"),
    "decrypt": Target("from_bytes + decrypt, tenseal", 1.0, "× TenSEAL's own"),
    "aggregator-memory": Target("aggregator memory above start, 2 to 30 sites", 1.3, "× an update in words"),
    "aggregator-growth": Target("… its growth from 2 to 30 sites", 0.02, "× an update in words"),
    "error": Target("error of the weighted mean, 30 sites", 1e-6, "absolute"),
    "flatten": Target("flatten, warm, same dtype", 1.5, "× one memcpy"),
    "scatter": Target("scatter, warm, same dtype", 1.5, "× one memcpy"),
}


@dataclass(frozen=True)
class Measurement:
    """What was measured for a target; `detail` says from which numbers."""

    name: str
    measured: float
    limit: float
    unit: str
    met: bool
    detail: str


@dataclass(frozen=True)
class BackendRow:
    """Cost of one update of the model under one backend and one choice of what is encrypted."""

    backend: str
    encrypt: str
    nbytes: int
    size_ratio: float
    encrypt_seconds: float
    add_seconds: float
    decrypt_seconds: float
    max_error: float


@dataclass
class Report:
    """Collects the rows of a run."""

    measurements: dict[str, Measurement] = field(default_factory=dict)
    backends: list[BackendRow] = field(default_factory=list)

    def measure(self, name: str, measured: float, detail: str = "") -> Measurement:
        """Hold a measured number against the target of that name."""
        target = TARGETS[name]
        met = measured <= target.limit
        self.measurements[name] = Measurement(name, measured, target.limit, target.unit, met, detail)
        return self.measurements[name]

    def lines(self) -> Iterator[str]:
        """Yield the tables as text."""
        if self.measurements:
            rows = [self._row(name) for name in TARGETS if name in self.measurements]
            yield from _table(("", "measured", "target", "", "from"), rows)
        if self.measurements and self.backends:
            yield ""
        if self.backends:
            head = ("backend", "encrypt", "MB", "× raw", "encrypt s", "add s", "decrypt s", "max error")
            yield from _table(head, [_backend_cells(row) for row in self.backends])

    def save(self, path: Path) -> None:
        """Write the rows of this run, and the machine and libraries that they were measured with."""
        data = {
            "machine": machine(),
            "targets": [asdict(self.measurements[name]) for name in TARGETS if name in self.measurements],
            "backends": [asdict(row) for row in self.backends],
        }
        path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def _row(self, name: str) -> Sequence[str]:
        row = self.measurements[name]
        return (
            TARGETS[name].title,
            f"{row.measured:.2f}" if 0.01 <= row.measured < 100 else f"{row.measured:.3g}",
            f"≤ {row.limit:g} {row.unit}",
            "met" if row.met else "NOT MET",
            row.detail,
        )


def machine() -> dict[str, Any]:
    """Return what the numbers depend on."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "kernels": secagg_ext.IMPLEMENTATION,
        "libraries": {name: version(name) for name in LIBRARIES},
        "load_average": round(os.getloadavg()[0], 2),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _backend_cells(row: BackendRow) -> Sequence[str]:
    return (
        row.backend,
        row.encrypt,
        f"{row.nbytes / 1e6:.1f}",
        f"{row.size_ratio:.2f}",
        f"{row.encrypt_seconds:.2f}",
        f"{row.add_seconds:.2f}",
        f"{row.decrypt_seconds:.2f}",
        f"{row.max_error:.1e}",
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for cells in (head, ["-" * width for width in widths], *rows):
        yield "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
