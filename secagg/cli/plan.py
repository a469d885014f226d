"""``secagg plan``: which scheme and params suit a model, before anything is set up."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from ..errors import ConfigError
from ..scheme.aggregation import MAX_CLIENTS
from ..setup.model_file import STATE_KEYS
from ..setup.planner import make_plan
from ..ui.progress import progress
from .plan_report import (
    bounds_words,
    comments,
    pattern_lines,
    print_table,
    publish_words,
    refuse_existing,
    write_config,
)

EXAMPLE = """secagg plan model.pt --sites 3 --updates update.npz --out federation.yaml
secagg plan model.safetensors --sites 10"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Compare backends and schemes for a model, recommend one, and write the configuration."""
    parser.add_argument(
        "model",
        type=Path,
        metavar="SHAPES_OR_CHECKPOINT",
        help="YAML or JSON {name: shape} or {name: {shape: …, dtype: …}}, an .npz, a .safetensors, or a torch .pt or "
        f".pth: a state dict, or a checkpoint that holds one as {', '.join(STATE_KEYS)}",
    )
    parser.add_argument("--sites", type=int, required=True, metavar="N", help="most sites that can take part")
    parser.add_argument(
        "--updates",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="sample updates (.npz, .safetensors, .pt, .pth), from which max_abs is suggested (default: max_abs 8)",
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
    plan = make_plan(options.model, options.sites, options.updates, options.max_weight, progress)
    layout, aggregation = plan.layout, plan.config.aggregation
    assert aggregation.max_abs is not None  # plans are of fixed precision
    model = (
        f"{len(layout.sent)} float tensors, {layout.size('encrypted'):,} values, {options.sites} sites, "
        f"weights up to {options.max_weight:g}"
    )
    print(f"{options.model}: {model}")
    print_table(plan.rows, plan.best)
    advice = [*publish_words(plan.config), *bounds_words(aggregation.max_abs, plan.sample)]
    if aggregation.weakness:
        advice.append(aggregation.weakness)
    recommended = f"recommended: {plan.best.choice.lib}, {plan.best.choice.name}: {plan.why}"
    print("", recommended, *advice, *pattern_lines(aggregation.max_abs), sep="\n")
    if options.out is None:
        print("add --out federation.yaml to write this configuration")
        return
    arguments = ["secagg", "plan", str(options.model), "--sites", str(options.sites)]
    if options.updates:
        arguments += ["--updates", *map(str, options.updates)]
    if options.max_weight != 1:
        arguments += ["--max-weight", f"{options.max_weight:g}"]
    texts = comments(plan, arguments, [f"for {model}", recommended, *advice])
    write_config(options.out, plan.config, texts)
    print(
        f"{options.out} is written; next: add project, hosts and sites to it, then\n"
        f"secagg provision {shlex.quote(str(options.out))} --out kits"
    )
