"""Which scheme and params suit a model: every choice with its cost, and the one that is recommended."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..backends.registry import available_backends
from ..config import Config
from ..errors import BackendUnavailableError, PrivacyWarning, SecAggError
from ..scheme.params import QuantisedParams
from ..scheme.report import PrecisionReport, show_share
from ..wire.layout import Layout
from .choices import Choice, Cost, choices, cost
from .model_file import read_layout
from .progress import Progress, silent
from .sample import check_sample, read_largest
from .sizes import header
from .speed import Seconds, measure


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
    rows : tuple of Row
        All choices.
    best : Row
        The one that is recommended.
    config : Config
        Its whole configuration.
    why : str
        Why it is recommended, in one sentence.
    check : PrecisionReport or None
        What it makes of sample updates; None if there were none, or it does not round.
    """

    layout: Layout
    rows: tuple[Row, ...]
    best: Row
    config: Config
    why: str
    check: PrecisionReport | None


def make_plan(model: Path, sites: int, updates: Sequence[Path] = (), progress: Progress = silent) -> Plan:
    """Compare all choices for a model, and recommend one.

    Parameters
    ----------
    model : Path
        The model, as `read_layout` takes it.
    sites : int
        Most sites that can take part.
    updates : sequence of Path
        Sample updates, as `read_largest` takes them, by which the recommended choice is checked.
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
    layout = read_layout(model)
    if updates:
        read_largest(updates, layout)  # what is wrong with them is better known before minutes of measuring
    rows = compare(layout, sites, progress)
    best, config, why = recommend(rows)
    rounds = updates and isinstance(config.params, QuantisedParams)
    return Plan(layout, rows, best, config, why, check_sample(updates, layout, config) if rounds else None)


def compare(layout: Layout, sites: int, progress: Progress = silent) -> tuple[Row, ...]:
    """Return every choice with its cost and its seconds on this machine, or with what rules it out.

    Parameters
    ----------
    layout : Layout
        The model.
    sites : int
        Most sites that can take part.
    progress : callable, optional
        Shows how far the measurements are.
    """
    backends, rows = available_backends(), []
    found = list(choices(sites))
    with warnings.catch_warnings(), progress("measure encryption and decryption on this machine") as report:
        warnings.simplefilter("ignore", PrivacyWarning)  # said once, of what is recommended
        for number, choice in enumerate(found):
            report(number, len(found))
            info = backends.get(choice.lib)
            row = Row(choice, info.trust if info else "unknown", problem=info.problem if info else None)
            try:
                row = replace(row, cost=cost(choice, layout, sites))
                if row.usable and row.cost is not None:
                    row = replace(
                        row, seconds=measure(row.cost.config, header("aggregate", sites, row.cost.config, layout))
                    )
            except SecAggError as error:
                row = replace(row, problem=row.problem or str(error))
            rows.append(row)
        report(len(found), len(found))
    return tuple(rows)


def recommend(rows: Sequence[Row]) -> tuple[Row, Config, str]:
    """Return one of the rows, its configuration, and why in one sentence.

    The smallest of an exact scheme, if one can be used: its sums are verified, its rounding is made good in the next
    round, and its models may be published, whereas means of CKKS leak about the key where they leave the sites. Of two
    of one size, the more precise one, and of the same params of two libraries the one that encrypts faster.

    Raises
    ------
    BackendUnavailableError
        If no row can be used.
    """
    usable = [(row, row.cost, row.seconds) for row in rows if row.usable and row.cost and row.seconds]
    if not usable:
        problems = dict.fromkeys(str(row.problem) for row in rows)
        raise BackendUnavailableError(f"no choice is left: {'; '.join(problems)}")
    exact = [item for item in usable if isinstance(item[1].config.params, QuantisedParams)]
    best, chosen, _ = min(
        exact or usable,
        key=lambda item: (item[1].update_nbytes + item[1].aggregate_nbytes, item[1].loss, item[2].encrypt),
    )
    why = "the smallest, as no exact one can be used"
    if exact:
        why = f"the smallest exact one; each round leaves {show_share(chosen.loss)} of a typical update to the next"
    return best, chosen.config, why
