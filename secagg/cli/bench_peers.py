"""``secagg bench peers``: others, and ours beside them, in one run."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from ..bench.peers.environment import environment
from ..bench.peers.model import describe, segresnet
from ..bench.peers.peers import PEERS
from ..bench.peers.run import Row, measure
from ..bench.peers.targets import targets
from ..bench.results import Results, check_out
from ..errors import ConfigError
from ..ui.progress import progress

EXAMPLE = """secagg bench peers
secagg bench peers --small --repeats 1
secagg bench peers --only nvflare-he tenseal flashe-11 --out peers.json"""

_OUT = Path("bench", "peers.json")
_ENV = "where their environment is; made the first time, in a minute, of 400 MB (default: in the user's cache)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Measure NVFlare's HE, bare HE libraries, Flower's SecAgg+, plain float32 and secagg: one model, one run."""
    parser.add_argument("--sites", type=int, default=3, help="how many send their update (default: 3)")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each, of which medians are told (default: 3)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"some of them: {', '.join(PEERS)}")
    parser.add_argument("--small", action="store_true", help="a model of 10⁵ values: to see that it works")
    parser.add_argument("--env", type=Path, metavar="FOLDER", help=_ENV)
    parser.add_argument("--out", type=Path, default=_OUT, metavar="FILE", help=f"the results (default: {_OUT})")


def run(options: argparse.Namespace) -> None:
    """Measure, write the results, print them."""
    names = _names(options.only)
    if options.sites < 2:
        raise ConfigError(f"--sites is {options.sites}; give 2 or more: the first message of each warms up")
    if options.repeats < 1:
        raise ConfigError(f"--repeats is {options.repeats}; give 1 or more")
    check_out(options.out, "peers")
    shapes = segresnet(options.small)
    with environment(options.env, progress) as python:
        rows = measure([str(python), "-I"], names, shapes, options.sites, options.repeats, progress)
    met = [] if options.small else targets(rows)  # they are of the whole model
    data = {"model": describe(shapes), "sites": options.sites, "rows": [asdict(row) for row in rows], "targets": met}
    Results("peers", _command(options), data).save(options.out)
    _print(rows, met)
    print(f"\n{options.out}")


def _names(only: Sequence[str] | None) -> list[str]:
    unknown = sorted(set(only or ()) - PEERS.keys())
    if unknown:
        raise ConfigError(f"--only names {', '.join(unknown)}; there are {', '.join(PEERS)}")
    return [name for name in PEERS if only is None or name in only]


def _command(options: argparse.Namespace) -> str:
    command = ["secagg", "bench", "peers", "--sites", str(options.sites), "--repeats", str(options.repeats)]
    command += ["--small"] if options.small else []
    command += ["--only", *options.only] if options.only else []
    return shlex.join([*command, "--out", str(options.out)])


def _print(rows: Sequence[Row], met: Sequence[Mapping[str, Any]]) -> None:
    """Print a row a peer, why some have no numbers, and the targets."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for title in ("encrypt s", "up MB", "add ms", "finish ms", "down MB", "decrypt s", "server MB", "site MB", "error"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row.title, *(["–"] * 9 if row.problem else _cells(row)))
    console = Console()
    # Rather wrapped by the terminal than cut; without a height, rich takes a dumb terminal's width instead.
    wide = Console(width=max(console.width, 140), height=console.height, highlight=False)
    with wide.capture() as capture:  # rich would end the program when the reader of a pipe is gone
        wide.print(table)
    print(*(line.rstrip() for line in capture.get().rstrip().splitlines()), sep="\n")
    print("\nserver, site: peak memory above the start; add: read and add one message; error: of the mean, at the most")
    for row in rows:
        if row.problem:
            print(f"{row.title}: {row.problem}")
    for target in met:
        word = "met" if target["met"] else "NOT MET"
        print(
            f"{word:8} {target['measured']:8.1f} ≥ {target['limit']:g} {target['unit']}: {target['title']} "
            f"({target['detail']})"
        )


def _cells(row: Row) -> list[str]:
    return [
        f"{median(row.encode_seconds):.3f}",
        f"{row.up_nbytes / 1e6:.2f}",
        f"{median(row.add_seconds) * 1e3:.1f}",
        f"{median(row.finish_seconds) * 1e3:.1f}",
        f"{row.down_nbytes / 1e6:.2f}",
        f"{median(row.decode_seconds):.3f}",
        f"{row.server_peak_nbytes / 1e6:.1f}",
        f"{row.site_peak_nbytes / 1e6:.1f}",
        f"{row.max_error:.1e}",
    ]
