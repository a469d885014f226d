"""``secagg plan``: which scheme and params suit a model, before anything is set up."""

from __future__ import annotations

import argparse
import shlex
import warnings
from dataclasses import replace
from pathlib import Path

from ..backends.registry import available_backends
from ..errors import BackendUnavailableError, ConfigError, PrivacyWarning, SecAggError
from ..scheme.aggregation import MAX_CLIENTS, Aggregation
from ..setup.bounds import needed_bits, read_sample, suggest_max_abs
from ..setup.choices import choices, cost, header, recommend
from ..setup.model_file import read_layout
from ..setup.speed import measure
from ..ui.progress import progress
from ..wire.layout import Layout
from .plan_report import (
    Row,
    bounds_words,
    comments,
    pattern_lines,
    print_table,
    publish_words,
    refuse_existing,
    write_config,
)

#: Of two sites, each could compute the other's update.
_MIN_CLIENTS = 3

EXAMPLE = "secagg plan model.pt --sites 3 --updates update.npz --out federation.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Compare backends and schemes for a model, recommend one, and write the configuration."""
    parser.add_argument(
        "model",
        type=Path,
        metavar="SHAPES_OR_CHECKPOINT",
        help="YAML or JSON {name: shape} or {name: {shape: …, dtype: …}}, an .npz, or a torch .pt or .pth",
    )
    parser.add_argument("--sites", type=int, required=True, metavar="N", help="most sites that can take part")
    parser.add_argument(
        "--updates",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="sample updates (.npz, .pt, .pth), from which max_abs is suggested (default: max_abs 8)",
    )
    parser.add_argument(
        "--max-weight",
        type=float,
        default=1.0,
        metavar="W",
        help="largest weight of any site, such as its number of examples (default: 1, for unweighted means)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="new file for the configuration (YAML)")


def run(options: argparse.Namespace) -> None:
    """Read, compare, recommend, and write."""
    if not 2 <= options.sites <= MAX_CLIENTS:
        raise ConfigError(f"--sites is {options.sites}; use 2 to {MAX_CLIENTS}")
    if options.out is not None:
        refuse_existing(options.out)
    aggregation = Aggregation(
        min_clients=min(options.sites, _MIN_CLIENTS), max_clients=options.sites, max_weight=options.max_weight
    )
    layout = read_layout(options.model)
    sample = read_sample(options.updates, layout) if options.updates else None
    if sample is not None:
        aggregation = replace(aggregation, max_abs=suggest_max_abs(sample.largest))
    needed = needed_bits(sample, layout, aggregation)

    rows = compare(layout, aggregation, needed)
    usable = [row.cost for row in rows if row.usable and row.cost is not None]
    if not usable:
        problems = dict.fromkeys(str(row.problem) for row in rows)
        raise BackendUnavailableError(f"no choice is left: {'; '.join(problems)}")
    best, why = recommend(usable, needed)
    row = next(row for row in rows if row.cost is best)
    model = (
        f"{len(layout.names)} float tensors, {layout.size('encrypted'):,} values, {options.sites} sites, "
        f"weights up to {options.max_weight:g}"
    )
    print(f"{options.model}: {model}")
    print_table(rows, best)
    advice = [*publish_words(best.config), *bounds_words(aggregation.max_abs, sample)]
    if aggregation.weakness:
        advice.append(aggregation.weakness)
    recommended = f"recommended: {row.choice.lib}, {row.choice.name}: {why}"
    print("", recommended, *advice, *pattern_lines(aggregation.max_abs), sep="\n")
    if options.out is None:
        print("add --out federation.yaml to write this configuration")
        return
    arguments = ["secagg", "plan", str(options.model), "--sites", str(options.sites)]
    if options.updates:
        arguments += ["--updates", *map(str, options.updates)]
    if options.max_weight != 1:
        arguments += ["--max-weight", f"{options.max_weight:g}"]
    texts = comments(row, best.config, arguments, [f"for {model}", recommended, *advice])
    write_config(options.out, best.config, texts)
    print(
        f"{options.out} is written; next: add project, hosts and sites to it, then\n"
        f"secagg provision {shlex.quote(str(options.out))} --out kits"
    )


def compare(layout: Layout, aggregation: Aggregation, needed: float) -> list[Row]:
    """Return every choice with its cost and its seconds on this machine, or with what rules it out."""
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
    return rows
