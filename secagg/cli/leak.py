"""``secagg leak``: what a server would read out of updates, by attacks on real bytes."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from ..config import ENCRYPT_CHOICES, Config
from ..errors import ConfigError

EXAMPLE = """secagg leak
secagg leak --encrypt conv --images 2
secagg leak --config federation.yaml --out leak"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Play a server that attacks updates: make them, encrypt them, read what is clear, and look for the images.

    Small networks are attacked that learn from slices of a brain, under each mode of `encrypt`, or under yours, beside
    updates that are not encrypted at all and such that are wholly encrypted. A table tells how much of the images is
    found, and a picture shows it. The whole table takes minutes.
    """
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--encrypt", choices=ENCRYPT_CHOICES, metavar="MODE", help=", ".join(ENCRYPT_CHOICES))
    which.add_argument("--config", type=Path, metavar="FILE", help="attack under this configuration")
    parser.add_argument("--images", type=int, default=4, metavar="N", help="how many are attacked (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="of images, networks and attacks (default: 0)")
    parser.add_argument(
        "--out", type=Path, default=Path("leak"), metavar="FOLDER", help="for leakage.json and .png (default: leak)"
    )


def run(options: argparse.Namespace) -> None:
    """Attack, write results and picture, print the tables."""
    from ..bench.leakage.images import CANDIDATES
    from ..bench.leakage.run import measure
    from ..bench.leakage.settings import rows_beside
    from ..bench.report.leakage import leakage_chart, leakage_tables
    from ..bench.results import Results, check_out
    from ..demo.task import check_least
    from ..storage.files import replace_file
    from ..ui.progress import progress
    from ..ui.tables import Row, print_table, wrapped

    if check_least("--images", options.images) > CANDIDATES:
        raise ConfigError(f"--images is {options.images}; there are {CANDIDATES}")
    check_least("--seed", options.seed, 0)
    rows = None
    if options.config is not None:
        rows = rows_beside(str(options.config), Config.load(options.config))
    elif options.encrypt is not None:
        rows = rows_beside(options.encrypt)
    file, picture = options.out / "leakage.json", options.out / "leakage.png"
    check_out(file, "leakage")
    results = Results("leakage", _command(options), measure(options.images, options.seed, progress, rows))
    results.save(file)
    chart = leakage_chart(results)
    with replace_file(picture) as target:
        target.write(chart.png())
    for table in leakage_tables(results):
        print(f"\n{table.caption}")
        print_table(table.head[:2], table.head[2:], [Row(cells) for cells in table.rows])
    print("", *wrapped([table.note], 100), f"{file}, {picture}", sep="\n")


def _command(options: argparse.Namespace) -> str:
    parts = ["secagg", "leak"]
    parts += ["--encrypt", options.encrypt] if options.encrypt else []
    parts += ["--config", str(options.config)] if options.config else []
    return shlex.join([*parts, "--images", str(options.images), "--seed", str(options.seed), "--out", str(options.out)])
