"""``secagg bench clara``: the tables of NVIDIA Clara Train."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

EXAMPLE = """secagg bench clara
secagg bench clara --network small --sites 2 --rounds 2 --seeds 1 --many 3
secagg bench clara --out benchmarks/results/clara.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Repeat the tables of NVIDIA Clara Train on this machine: raw and encrypted rounds, side by side.

    All settings do a round before any does the next, with the same training. What is measured is kept beside the
    output: the same command, started again, goes on from the last whole round.
    """
    parser.add_argument(
        "--sites", type=int, nargs="+", default=[2, 4, 8], metavar="N", help="numbers of sites (default: 2 4 8)"
    )
    parser.add_argument("--rounds", type=int, default=4, help="rounds of training of each (default: 4)")
    parser.add_argument(
        "--seeds", type=int, default=5, help="runs of the smallest number of sites, for the Dice (default: 5)"
    )
    parser.add_argument(
        "--many", type=int, default=30, metavar="N", help="sites of a round without training; 0: none (default: 30)"
    )
    parser.add_argument(
        "--network",
        choices=("segresnet", "small"),
        default="segresnet",
        help="4.7 M parameters, or 108,346 with little data, for a look (default: segresnet)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("bench", "clara.json"), metavar="FILE", help="(default: bench/clara.json)"
    )


def run(options: argparse.Namespace) -> None:
    """Measure, save, print."""
    from ..bench.clara.progress_file import Options
    from ..bench.clara.run import run_clara
    from ..bench.clara.tables import print_tables
    from ..bench.results import check_out

    wanted = Options(tuple(options.sites), options.rounds, options.seeds, options.many, options.network)
    check_out(options.out, "clara")
    try:
        results = run_clara(wanted, options.out)
    except KeyboardInterrupt:
        print("secagg: the same command, started again, goes on from the last whole round", file=sys.stderr)
        raise
    print_tables(results.data)
    print(options.out)
