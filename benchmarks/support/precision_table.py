"""The table that docs/precision.md quotes: what each task loses, by bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Row:
    """One task: the raw run's metric, what each preset loses of it and at how many bits, NMSE by backend and bits."""

    raw: float | None = None
    lost: dict[str, tuple[float, int]] = field(default_factory=dict)
    errors: dict[tuple[str, int], float] = field(default_factory=dict)
    simulated: dict[int, float] = field(default_factory=dict)


class PrecisionTable:
    """Collects rows, and prints them after a run: a plugin of pytest."""

    def __init__(self) -> None:
        self._rows: dict[str, Row] = {}

    def __getitem__(self, task: str) -> Row:
        return self._rows.setdefault(task, Row())

    def lines(self) -> Iterator[str]:
        """Yield the table in Markdown; errors have those of the simulation in brackets."""
        presets = sorted({preset for row in self._rows.values() for preset in row.lost})
        bits = sorted({bits for row in self._rows.values() for bits in row.simulated})
        head = ["", "raw", *(f"largest difference, {preset}" for preset in presets)]
        yield _line([*head, *(f"NMSE, {number} bits" for number in bits)])
        yield _line(["---"] * (len(head) + len(bits)))
        for task, row in self._rows.items():
            raw = "" if row.raw is None else f"{row.raw:.4f}"
            lost = ["{:.4f}, {} bits".format(*row.lost[preset]) if preset in row.lost else "" for preset in presets]
            yield _line([task, raw, *lost, *(self._error(row, number) for number in bits)])

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self._rows:
            terminalreporter.section("precision: auto")
            for line in self.lines():
                terminalreporter.write_line(line)

    def _error(self, row: Row, bits: int) -> str:
        found = [error for (_, number), error in row.errors.items() if number == bits]
        return f"{max(found):.1e} ({row.simulated[bits]:.1e})" if found else ""


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
