"""``secagg plan``: which scheme and params suit a model, before anything is set up."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from ..setup.choices import check_sites
from ..setup.model_file import STATE_KEYS
from ..setup.planner import make_plan
from ..ui.progress import progress
from .plan_report import check_words, comments, print_table, refuse_existing, scheme_words, write_config

EXAMPLE = """secagg plan model.pt --sites 3 --out federation.yaml
secagg plan shapes.yaml --sites 10
secagg plan model.safetensors --sites 30 --updates difference-1.npz difference-2.npz

  shapes.yaml:
    conv.weight: [16, 1, 3, 3, 3]
    conv.bias: {shape: [16], dtype: float32}"""


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
        help="sample updates, differences of two states of training (.npz, .safetensors, .pt, .pth): shows how "
        "precisely the recommended scheme would send each of their tensors",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="new file for the configuration (YAML)")


def run(options: argparse.Namespace) -> None:
    """Read, compare, recommend, and write."""
    check_sites(options.sites)
    if options.out is not None:
        refuse_existing(options.out)
    plan = make_plan(options.model, options.sites, options.updates, progress)
    layout = plan.layout
    model = f"{len(layout.sent)} float tensors, {layout.size('encrypted'):,} values, {options.sites} sites"
    print(f"{options.model}: {model}")
    print_table(plan.rows, plan.best)
    recommended = f"recommended: {plan.best.choice.lib}, {plan.best.choice.name}: {plan.why}"
    advice = scheme_words(plan.config)
    if plan.config.aggregation.weakness:
        advice.append(plan.config.aggregation.weakness)
    print("", recommended, *advice, sep="\n")
    checked = [] if plan.check is None else check_words(plan.check, plan.config)
    if plan.check is not None:
        print("", f"the sample, rounded as {plan.best.choice.name} rounds it:", plan.check, *checked, sep="\n")
    if options.out is None:
        print("add --out federation.yaml to write this configuration")
        return
    arguments = ["secagg", "plan", str(options.model), "--sites", str(options.sites)]
    if options.updates:
        arguments += ["--updates", *map(str, options.updates)]
    write_config(options.out, plan.config, comments(plan, arguments, [f"for {model}", recommended, *advice, *checked]))
    print(
        f"{options.out} is written; next: add project, hosts and sites to it, then\n"
        f"secagg provision {shlex.quote(str(options.out))} --out kits"
    )
