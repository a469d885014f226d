"""What a run of the benchmarks has to say: a table, and rows of a JSON file that has those of other runs, too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from secagg.bench.results import Results


@dataclass(frozen=True)
class Target:
    """One requirement: `measured` must be at most `limit`, a number of `unit`; or at least that."""

    title: str
    limit: float
    unit: str
    at_least: bool = False

    def met(self, measured: float) -> bool:
        return measured >= self.limit if self.at_least else measured <= self.limit


#: Every requirement, in the order of the table. Ratios are of medians of one run.
TARGETS = {
    "error-sums": Target("error of the mean, CKKS for sums only, 30 sites", 1e-4, "absolute"),
    "encrypt": Target("encrypt + to_bytes, tenseal, seeded", 1.0, "× TenSEAL's own"),
    "encrypt-seal": Target("encrypt + to_bytes, seal with Clara's params, seeded", 1.0, "× TenSEAL's own"),
    "encrypt-memory": Target("encrypt + to_bytes, memory above start", 300, "MB"),
    "add": Target("from_bytes + add, all checks included", 0.3, "× TenSEAL's own"),
    "decrypt": Target("from_bytes + decrypt, tenseal", 1.0, "× TenSEAL's own"),
    "speed-bgv": Target("encrypt + to_bytes, seal BGV 16", 8, "× as fast as tenseal", at_least=True),
    "speed-flashe": Target("encrypt + to_bytes, flashe 16", 100, "× as fast as tenseal", at_least=True),
    "overhead-flashe": Target("encrypt + to_bytes, flashe 16", 2.0, "× quantise + tag + keystream + digest"),
    "tags-tenseal": Target("encrypt + to_bytes, tenseal, with tags", 1.10, "× without"),
    "tags-seal-bgv-16": Target("… seal BGV 16", 1.15, "× without"),
    "tags-flashe-16": Target("… flashe 16", 1.15, "× without"),
    "tags-nbytes-tenseal": Target("tags and manifest of an update, tenseal", 300, "bytes"),
    "tags-nbytes-seal-bgv-16": Target("… seal BGV 16", 300, "bytes"),
    "tags-nbytes-flashe-16": Target("… flashe 16", 300, "bytes"),
    "nonce-flashe": Target("a nonce of all that is encrypted, flashe 16", 0.25, "× encrypt + to_bytes"),
    "verify-tenseal": Target("from_bytes + decrypt, 30 sites, tenseal, tags checked", 1.15, "× unchecked"),
    "verify-seal-bgv-16": Target("… seal BGV 16", 1.15, "× unchecked"),
    "verify-flashe-16": Target("… flashe 16", 1.15, "× unchecked"),
    "add-flashe": Target("from_bytes + add, flashe 16, all checks", 2.0, "GB/s", at_least=True),
    "add-flashe-needed": Target("… beside one digest and one addition of the same bytes", 1.5, "× these alone"),
    "decrypt-flashe": Target("decrypt, 30 sites, flashe 16", 1.5, "× its 30 streams"),
    "decrypt-bgv": Target("decrypt, 30 sites, seal BGV 16", 1.5, "× its 30 streams + SEAL's decrypt"),
    "exact": Target("integer sums that differ, 2 to 1000 sites", 0, "of all values"),
    "stream-memory": Target("flashe, 10⁹ float32 values into a file, memory above the model", 300, "MB"),
    "accuracy": Target("digits, 20 rounds of 10 sites: accuracy lost, any preset", 0.5, "points"),
    "dice-seal-bgv-10": Target("demo, seal BGV 10 with error feedback: Dice beside raw", 0.02, "of difference"),
    "dice-flashe-11": Target("demo, flashe 11 with error feedback: Dice beside raw", 0.02, "of difference"),
    "aggregator-memory": Target("aggregator memory above start, 2 to 30 sites", 1.3, "× an update in words"),
    "aggregator-growth": Target("… its growth from 2 to 30 sites", 0.02, "× an update in words"),
    "error": Target("error of the weighted mean, 30 sites, Clara's params", 1e-6, "absolute"),
    "throughput-segresnet": Target(
        "server, 30 sites × SegResNet, flashe 16", 0.8, "× a gRPC upload that writes and fsyncs", at_least=True
    ),
    "throughput-million": Target(
        "server, 200 sites × 1 M parameters, flashe 16", 0.8, "× a gRPC upload that writes and fsyncs", at_least=True
    ),
    "server-memory-segresnet": Target(
        "… 30 sites: memory that the second half adds to the peak", 0.05, "× what it sends"
    ),
    "server-memory-million": Target(
        "… 200 sites: memory that the second half adds to the peak", 0.05, "× what it sends"
    ),
    **{
        f"shards-{what}-{setting}": Target(
            f"{'' if setting == 'flashe-16' else '… '}{title}, {setting}", limit, unit, True
        )
        for what, title, limit, unit in (
            ("s3", "sum of 48 updates from S3 over HTTP", 0.8, "× reading them through fsspec"),
            ("scaling", "… two workers by one", 0.85, "× two readers by one"),
        )
        for setting in ("flashe-16", "seal-bgv-16", "tenseal")
    },
    "shards-memory-folder": Target("… memory of a worker above start, updates of 10 to 400 MB in a folder", 300, "MB"),
    "shards-memory-s3": Target("… in S3", 300, "MB"),
    "threads-tls": Target("round of 20 sites as threads of one process, mutual TLS", 2.0, "× as 20 processes"),
    "threads-insecure": Target("… without TLS", 2.0, "× as 20 processes"),
    "flatten": Target("flatten, warm, same dtype", 1.5, "× one memcpy"),
    "scatter": Target("scatter, warm, same dtype", 1.5, "× one memcpy"),
    "poly-mac": Target("authenticate words, warm", 2.5, "× one memcpy"),
    "word-macs": Target("tag words of ciphertexts, warm", 1.0, "ns a word and element"),
    "patterns": Target("encrypt with 1,159 patterns of max_abs on 1,920 tensors", 1.5, "× with one number"),
    "import": Target("import secagg", 0.15, "s beyond NumPy"),
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
    command: str


@dataclass
class Report:
    """Collects the rows of a run; `command` is what repeats those that are measured next."""

    measurements: dict[str, Measurement] = field(default_factory=dict)
    command: str = "make bench"

    def measure(self, name: str, measured: float, detail: str = "") -> Measurement:
        """Hold a measured number against the target of that name."""
        target = TARGETS[name]
        met = target.met(measured)
        self.measurements[name] = Measurement(name, measured, target.limit, target.unit, met, detail, self.command)
        return self.measurements[name]

    def lines(self) -> Iterator[str]:
        """Yield the table as text."""
        if self.measurements:
            rows = [self._row(name) for name in TARGETS if name in self.measurements]
            yield from _table(("", "measured", "target", "", "from"), rows)

    def save(self, path: Path) -> None:
        """Put the rows of this run in the place of earlier ones of their names; each says when, and on what, it was."""
        kept = Results.load(path, "bench").data["targets"] if path.exists() else []
        new = Results("bench", "make bench", {})
        rows: dict[str, dict[str, Any]] = {row["name"]: row for row in kept}
        for name, row in self.measurements.items():
            about = {"title": TARGETS[name].title, "at_least": TARGETS[name].at_least, "date": new.date}
            rows[name] = {**vars(row), **about, **{key: new.machine[key] for key in ("processor", "cores")}}
        # In the order of the table; those of files that this run has not imported come last.
        order = [*(name for name in TARGETS if name in rows), *(name for name in rows if name not in TARGETS)]
        path.parent.mkdir(exist_ok=True)
        replace(new, data={"targets": [rows[name] for name in order]}).save(path)

    def _row(self, name: str) -> Sequence[str]:
        row = self.measurements[name]
        return (
            TARGETS[name].title,
            f"{row.measured:.2f}" if 0.01 <= row.measured < 100 or not row.measured else f"{row.measured:.3g}",
            f"{'≥' if TARGETS[name].at_least else '≤'} {row.limit:g} {row.unit}",
            "met" if row.met else "NOT MET",
            row.detail,
        )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for cells in (head, ["-" * width for width in widths], *rows):
        yield "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
