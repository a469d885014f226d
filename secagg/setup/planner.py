"""Which scheme and params suit a model: every choice with its cost, and the one that is recommended."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..backends.registry import available_backends
from ..config import Config
from ..errors import BackendUnavailableError, PrivacyWarning, SecAggError
from ..scheme.aggregation import Aggregation
from ..wire.layout import Layout
from .bounds import Sample, needed_bits, read_sample, suggest_max_abs
from .choices import Choice, Cost, choices, cost, header, recommend
from .model_file import read_layout
from .progress import Progress, silent
from .speed import Seconds, measure

#: Of two sites, each could compute the other's update.
_MIN_CLIENTS = 3


@dataclass(frozen=True)
class Row:
    """One choice: what it costs and how long it takes, or the problem that rules it out."""

    choice: Choice
    trust: str
    cost: Cost | None = None
    seconds: Seconds | None = None
    problem: str | None = None

    @property
    def usable(self) -> bool:
        """Whether it can be recommended."""
        return self.problem is None


@dataclass(frozen=True)
class Plan:
    """What was compared, and what is recommended.

    Parameters
    ----------
    layout : Layout
        The model, all of its float tensors encrypted.
    sample : Sample or None
        What sample updates say; None if there were none.
    rows : tuple of Row
        All choices.
    best : Row
        The one that is recommended.
    config : Config
        Its whole configuration.
    why : str
        Why it is recommended, in one sentence.
    """

    layout: Layout
    sample: Sample | None
    rows: tuple[Row, ...]
    best: Row
    config: Config
    why: str


def make_plan(
    model: Path, sites: int, updates: Sequence[Path] = (), max_weight: float = 1.0, progress: Progress = silent
) -> Plan:
    """Compare all choices for a model, and recommend one.

    Parameters
    ----------
    model : Path
        The model, as `read_layout` takes it.
    sites : int
        Most sites that can take part.
    updates : sequence of Path
        Sample updates, as `read_sample` takes them: ``max_abs`` is suggested from them, and else the default.
    max_weight : float
        Largest weight of any site.
    progress : callable, optional
        Shows how far the measurements are.

    Raises
    ------
    ConfigError
        If a number is out of range.
    FormatError, LayoutError, RangeError
        If a file cannot be read as what it is to be.
    BackendUnavailableError
        If no choice is left.
    """
    aggregation = Aggregation(min_clients=min(sites, _MIN_CLIENTS), max_clients=sites, max_weight=max_weight)
    layout = read_layout(model)
    sample = read_sample(updates, layout) if updates else None
    if sample is not None:
        aggregation = replace(aggregation, max_abs=suggest_max_abs(sample.largest))
    needed = needed_bits(sample, layout, aggregation)
    rows = compare(layout, aggregation, needed, progress)
    usable = [row.cost for row in rows if row.usable and row.cost is not None]
    if not usable:
        problems = dict.fromkeys(str(row.problem) for row in rows)
        raise BackendUnavailableError(f"no choice is left: {'; '.join(problems)}")
    chosen, why = recommend(usable, needed)
    best = next(row for row in rows if row.cost is chosen)
    return Plan(layout, sample, rows, best, chosen.config, why)


def compare(layout: Layout, aggregation: Aggregation, needed: float, progress: Progress = silent) -> tuple[Row, ...]:
    """Return every choice with its cost and its seconds on this machine, or with what rules it out.

    Parameters
    ----------
    layout : Layout
        The model.
    aggregation : Aggregation
        ``max_clients`` is the number of sites.
    needed : float
        Bits of precision that a mean needs.
    progress : callable, optional
        Shows how far the measurements are.
    """
    backends, rows = available_backends(), []
    found = list(choices(aggregation, needed))
    with warnings.catch_warnings(), progress("measure encryption and decryption on this machine") as report:
        warnings.simplefilter("ignore", PrivacyWarning)  # said once, of what is recommended
        for number, choice in enumerate(found):
            report(number, len(found))
            info = backends.get(choice.lib)
            row = Row(choice, info.trust if info else "unknown", problem=info.problem if info else None)
            try:
                row = replace(row, cost=cost(choice, layout, aggregation))
                if row.usable and row.cost is not None:
                    aggregate = header("aggregate", aggregation.max_clients, row.cost.config, layout)
                    row = replace(row, seconds=measure(row.cost.config, aggregate))
            except SecAggError as error:
                row = replace(row, problem=row.problem or str(error))
            rows.append(row)
        report(len(found), len(found))
    return tuple(rows)
