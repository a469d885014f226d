"""What a plan shows and writes: a table of the choices, what the best makes of samples, and the configuration."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from ..config import Config
from ..errors import ConfigError, StorageError
from ..scheme.params import MAX_VALUE_BITS, CKKSParams, QuantisedParams
from ..scheme.report import MAX_LOSS, PrecisionReport, show_share
from ..setup.choices import CREST, TYPICAL
from ..setup.planner import Plan, Row
from ..setup.sample import bits_for
from ..storage.files import os_errors
from ..storage.yaml_file import to_yaml
from ..ui import tables
from ..ui.words import security


def print_table(rows: Sequence[Row], best: Row) -> None:
    """Print one row a choice, the recommended one marked, and below it what rules others out."""
    costs = [row.cost for row in rows if row.cost is not None]
    unit, name = tables.unit_for(max(cost.update_nbytes for cost in costs))
    shown: list[tables.Row] = []
    problems: dict[str, int] = {}
    for row in rows:
        cells = ["–"] * 6
        if row.cost is not None:
            sizes = (f"{nbytes / unit:.2f}" for nbytes in (row.cost.update_nbytes, row.cost.aggregate_nbytes))
            cells[:4] = [*sizes, f"{row.cost.expansion:.2f}", show_share(row.cost.loss).replace(" ", "")]
        if row.seconds is not None:
            cells[4:] = map(tables.show_time, row.seconds)
        if row.problem is not None:
            cells[5] = f"[{problems.setdefault(row.problem, len(problems) + 1)}]"
        chosen = row is best
        name_cells = ("▸" if chosen else "", row.choice.lib, row.choice.name)
        shown.append(tables.Row((*name_cells, *cells), "bold" if chosen else "" if row.usable else "dim"))
    # Of 80 columns at most.
    numbers = (f"up {name}", "down", "× raw", "error", "encrypt", "decrypt")
    tables.print_table(("", "he.lib", "scheme"), numbers, shown)
    print("", *_caption(rows), sep="\n")
    for problem, number in problems.items():
        print(f"[{number}] {problem}")


def _caption(rows: Sequence[Row]) -> list[str]:
    """Return what the table means, in lines of at most 80 characters."""
    levels = {f"{row.cost.config.params.scheme} {security(row.cost.config.params)}": None for row in rows if row.cost}
    trusts: dict[str, dict[str, None]] = {}
    for row in rows:
        trusts.setdefault(row.trust, {})[row.choice.lib] = None
    texts = [
        "up, down: what a site sends and receives in a round, calibration included",
        "× raw: up, by float32 values",
        f"error: energy of the error of an update, by its own. BGV, FLASHE: of a typical tensor, whose largest value "
        f"is {CREST:g} × the root mean square; the next round makes it good. CKKS: a bound, of values that are "
        f"1/{1 / TYPICAL:g} of max_abs",
        "encrypt, decrypt: estimated from a few blocks on this machine",
        f"security: {', '.join(levels)} (classical, ePrint 2024/463)",
        *(f"{', '.join(libs) if len(trusts) > 1 else 'trust'}: {trust}" for trust, libs in trusts.items()),
    ]
    return tables.wrapped(texts)


def scheme_words(config: Config) -> list[str]:
    """Return what a scheme demands of who configures a federation and publishes its model, line by line."""
    if not isinstance(config.params, CKKSParams):
        return ["sites measure in each round how large values are: there is no number to guess"]
    aggregation = config.aggregation
    return [
        f"CKKS: no value may be beyond max_abs, {aggregation.max_abs:g}, and no weight beyond max_weight, "
        f"{aggregation.max_weight:g}: set them",
        "CKKS: a mean that leaves the sites leaks about the key; publish models from an exact scheme, BGV or FLASHE",
    ]


def check_words(report: PrecisionReport, config: Config) -> list[str]:
    """Return in a line or two how precisely sample updates would be sent."""
    assert isinstance(config.params, QuantisedParams)
    bits, lossy = config.params.value_bits, [item for item in report.worst if item.loss > MAX_LOSS]
    first = f"a round leaves {show_share(report.overall.loss)} of the sample's energy to the next one"
    if not lossy:
        return [f"{first}, and of no tensor more than {show_share(MAX_LOSS)}"]
    needed = bits_for(report, bits)
    remedy = f"value_bits: {needed} in he.config leaves less" if needed <= MAX_VALUE_BITS else "CKKS leaves less"
    return [
        f"{first}; of {len(lossy)} of {len(report.tensors)} tensors more than {show_share(MAX_LOSS)}, of "
        f"{lossy[0].name!r} {show_share(lossy[0].loss)}",
        f"it is sent later, by error feedback; {remedy}, where training should suffer from it",
    ]


def refuse_existing(path: Path) -> None:
    """Raise `ConfigError` if a file is there already, which is never overwritten, or no folder for it."""
    if os.path.lexists(path):
        raise ConfigError(f"{path} exists; a configuration is never overwritten: name a new file with --out")
    if not path.parent.is_dir():
        raise ConfigError(f"cannot write {str(path)!r}: there is no folder {str(path.parent)!r}")


def write_config(path: Path, config: Config, comments: Sequence[str]) -> None:
    """Write a configuration as YAML below comments; errors as of `refuse_existing`, also if it cannot be written."""
    parts = [f"# {line}\n" for line in comments]
    blocks = config.to_dict()
    blocks["aggregation"] = {key: value for key, value in blocks["aggregation"].items() if value is not None}
    for key, value in blocks.items():
        parts.append(to_yaml({key: value}, flow=key == "he"))  # a list of primes on one line, patterns on their own
    with os_errors(StorageError, f"cannot write {str(path)!r}"):
        try:
            # A comment names files, whose names need not be text.
            with path.open("x", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(parts)
        except FileExistsError:
            refuse_existing(path)
            raise


def comments(plan: Plan, command: Sequence[str], texts: Sequence[str]) -> list[str]:
    """Return what stands above the configuration in its file: how it was made, `texts`, and advice."""
    return [
        f"made by: {shlex.join(command)}",
        *texts,
        f"trust: {plan.best.trust}",
        "min_clients: the fewest sites of a round; with two, each can compute the other's update from the mean",
    ]
