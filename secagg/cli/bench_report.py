"""``secagg bench report``: a page and pictures of what the other benchmarks have left."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..bench.report.page import write_report
from ..ui.progress import progress

EXAMPLE = """secagg bench report
secagg bench report benchmarks/results --out runs/report"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Make one HTML page, and a PNG of each figure, from the JSON files that the other benchmarks have left."""
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        metavar="FOLDER",
        default=Path("bench"),
        help="of the JSON files (default: bench, where clara, peers and growth put them; that of a model is in the "
        "folder where it was made)",
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for page and pictures (default: beside the files)")


def run(options: argparse.Namespace) -> None:
    """Write the page, and say where it is."""
    written = write_report(options.folder, options.out or options.folder, progress)
    print(*written, sep="\n")
