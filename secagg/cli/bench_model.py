"""``secagg bench MODEL``: a model of one's own through all backends, in one table and one plot."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from ..bench.model import RAW, CostRow, Model, choose, compare, expected_seconds, is_long
from ..bench.model_files import Files
from ..bench.results import make_folder
from ..bench.settings import SETTINGS
from ..setup.choices import check_sites
from ..ui import tables
from ..ui.progress import progress
from ..ui.units import show_count, show_seconds

EXAMPLE = """secagg bench my_model.pt
secagg bench shapes.json --sites 30 --out results
secagg bench adapter.safetensors --only tenseal flashe-11 smallest --out adapter.json"""

_DEFAULT_SITES = 3
_HEAD = ("encrypt", "add", "decrypt", "bits", "site MB", "server")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Encrypt, add and decrypt a model of your own with all backends: one table, one plot, and a file of results.

    `secagg plan` estimates from a few blocks and recommends a configuration; this measures the whole model, and
    recommends nothing. It takes less than a minute for 5 million parameters.
    """
    parser.add_argument("model", type=Path, metavar="MODEL", help="a model's file, or its shapes, as of `secagg plan`")
    parser.add_argument(
        "--sites",
        type=int,
        default=_DEFAULT_SITES,
        metavar="N",
        help=f"sites that sizes and room for the sum are for (default: {_DEFAULT_SITES}); two of them are measured",
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="SETTING", help=f"of {', '.join(SETTINGS)}")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER_OR_FILE",
        help="folder for MODEL.json and MODEL.png (default: bench), or a file .json; the .png is beside it",
    )


def run(options: argparse.Namespace) -> None:
    """Read, measure, print, and write."""
    sites, settings = check_sites(options.sites), choose(options.only)
    files = Files.of(options.model, options.out)
    began = time.perf_counter()
    model = Model.load(options.model)
    make_folder(files.results)  # better known before minutes of measuring
    tensors, values = show_count(len(model.layout.sent), "float tensor"), "value" if model.parameters == 1 else "values"
    print(f"{options.model}: {tensors}, {model.parameters:,} {values}, {sites} sites")
    if is_long(model):
        seconds = expected_seconds(model, sites, settings, progress)
        print(f"this takes about {show_seconds(max(seconds, 60))}: each thing is measured once or twice", flush=True)
    rows = compare(model, sites, settings, progress=progress)
    command = ["secagg", "bench", str(options.model), "--sites", str(sites)]
    command += ["--only", *options.only] if options.only else []
    command += ["--out", str(options.out)] if options.out else []
    files.save(model, sites, rows, command)  # first: the reader of a pipe may have gone
    _print_rows(rows, model, sites)
    print("", f"{show_seconds(time.perf_counter() - began)}; {files.plot}, {files.results}", sep="\n")


def _print_rows(rows: Sequence[CostRow], model: Model, sites: int) -> None:
    unit, name = tables.unit_for(max(row.up_nbytes or 0 for row in rows))
    problems: dict[str, int] = {}
    shown = []
    for row in rows:
        scheme = "" if row.setting == RAW else row.scheme
        if row.problem is None:
            shown.append(tables.Row((row.setting, scheme, *_cells(row, model, unit))))
            continue
        number = problems.setdefault(row.problem, len(problems) + 1)
        cells = [*["–"] * (2 + len(_HEAD)), f"[{number}]"]
        shown.append(tables.Row((row.setting, scheme, *cells), "dim"))
    tables.print_table(("setting", "scheme"), (f"up {name}", "down", "× raw", *_HEAD), shown)
    print("", *tables.wrapped(_caption(model, sites), 100), sep="\n")
    for problem, number in problems.items():
        print(f"[{number}] {problem}")


def _cells(row: CostRow, model: Model, unit: float) -> list[str]:
    assert row.up_nbytes is not None
    assert row.down_nbytes is not None
    assert row.site_peak_nbytes is not None
    assert row.server_peak_nbytes is not None
    return [
        f"{row.up_nbytes / unit:.2f}",
        f"{row.down_nbytes / unit:.2f}",
        f"{row.up_nbytes / model.raw_nbytes:.2f}",
        *(tables.show_time(median(seconds)) for seconds in (row.encrypt_seconds, row.add_seconds, row.decrypt_seconds)),
        "–" if row.bits is None else f"{row.bits:.1f}",
        f"{row.site_peak_nbytes / 1e6:.1f}",
        f"{row.server_peak_nbytes / 1e6:.1f}",
    ]


def _caption(model: Model, sites: int) -> list[str]:
    values = (
        "values drawn for its shapes, as updates have them"
        if model.drawn
        else "the values of the file, as if they were an update"
    )
    return [
        f"encrypted: {values}; sizes and times do not depend on them, bits do",
        f"up, down: what a site sends and receives in a round of {sites} sites, exactly; × raw: up, by float32",
        "encrypt, decrypt: of a site, to and from bytes; add: of the server, for one site, checks included. Medians of "
        "the whole model on this machine, calibration included; of two sites, whatever --sites says",
        "bits: of precision, the largest error of the mean by the largest value; all are within what is promised",
        "site, server: the most memory that is taken, beside model, libraries and keys",
        "exact, smallest: presets, which measure scales in each round; for the others, max_abs is the power of two "
        f"that no value is beyond, {model.bound:g}",
    ]
