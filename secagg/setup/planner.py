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
from ..scheme.params import QuantisedParams
from ..wire.layout import Layout
from .bounds import Sample, needed_bits, read_sample, suggest_max_abs
from .choices import Choice, Cost, choices, cost, header
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
    best, config, why = recommend(rows, needed)
    return Plan(layout, sample, rows, best, config, why)


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


def recommend(rows: Sequence[Row], needed: float) -> tuple[Row, Config, str]:
    """Return one of the rows, its configuration, and why in one sentence.

    The smallest with the bits that are needed; of an exact scheme, if one has them: its sums are verified, and its
    models may be published, whereas means of CKKS leak about the key where they leave the sites. Of two of one size, as
    the same params of two libraries have it, the one that encrypts faster.

    Raises
    ------
    BackendUnavailableError
        If no row can be used.
    """
    usable = [(row, row.cost, row.seconds) for row in rows if row.usable and row.cost and row.seconds]
    if not usable:
        problems = dict.fromkeys(str(row.problem) for row in rows)
        raise BackendUnavailableError(f"no choice is left: {'; '.join(problems)}")
    fitting = [item for item in usable if item[1].precision >= needed]
    exact = [item for item in fitting if isinstance(item[1].config.params, QuantisedParams)]
    if fitting:
        best, chosen, _ = min(
            exact or fitting, key=lambda item: (item[1].update_nbytes + item[1].aggregate_nbytes, item[2].encrypt)
        )
        which = "the smallest exact one whose error fits" if exact else "the smallest that fits, as no exact one does"
        why = f"{which}: {chosen.precision:.1f} bits of precision, {needed:.1f} are needed"
    else:
        best, chosen, _ = max(usable, key=lambda item: (item[1].precision, -item[2].encrypt))
        why = f"the most precise, as none has the {needed:.1f} bits that are needed: it has {chosen.precision:.1f}"
    return best, chosen.config, why
