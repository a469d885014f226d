"""What one round was at one site: what the new global model is worth, what was sent, and how long each step took."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class SiteRecord:
    """One round at one site: metrics of the new global model, bytes sent, seconds of each step.

    `nbytes` is that of the update, `calibration_nbytes` of what came before it, if the round began with that; to
    calibrate takes as long as the others do. `bits` is what a typical value of the update has taken, 0 where nothing is
    rounded; `clipped` how many were too large for their scale; `verified` whether the sum is verified to be that of the
    updates that it lists; `means` the weighted means over all sites of what they have measured, before training, of the
    model that the round began from. What was trained and encrypted before a restart took 0 seconds; a round that was
    skipped has 0 bytes.
    """

    round: int
    metrics: Mapping[str, float]
    nbytes: int
    train_seconds: float
    encrypt_seconds: float
    upload_seconds: float
    wait_seconds: float
    decrypt_seconds: float
    calibration_nbytes: int = 0
    calibrate_seconds: float = 0.0
    bits: float = 0.0
    clipped: int = 0
    verified: bool = False
    means: Mapping[str, float] = field(default_factory=dict)

    def append_to(self, path: Path) -> None:
        """Append the record to a file as a line of JSON."""
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(self)) + "\n")


def read_records(path: Path) -> list[SiteRecord]:
    """Return the records of a file that a site is perhaps still writing."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [SiteRecord(**json.loads(line)) for line in lines]


def show_metrics(metrics: Mapping[str, float]) -> str:
    """Return metrics for a line of text: ``dice 0.9221, loss 0.1130``."""
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
