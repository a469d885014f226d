"""``secagg bench shards``: a round that is added where its updates lie, measured, and simulated for many machines."""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..bench.report.folder import read_file
from ..bench.report.numbers import show_source
from ..bench.report.shards import shards_tables
from ..bench.results import Results, check_out
from ..bench.settings import SETTINGS
from ..bench.shards import simulation
from ..bench.shards.measure import measure
from ..bench.shards.memory import worker_memory
from ..bench.shards.prices import Prices
from ..bench.shards.run import conclude
from ..bench.shards.simulation import Plan
from ..bench.shards.updates import lay
from ..errors import ConfigError, show
from ..storage import objects
from ..ui import tables
from ..ui.progress import progress

EXAMPLE = """secagg bench shards
secagg bench shards --place s3://bucket/bench --updates 16
secagg bench shards --rates benchmarks/results/shards.json --sites 300 --nodes 8 --gbit 25
secagg bench shards --rates benchmarks/results/shards.json --price egress=0 --price node=0.4"""

_MEGABYTE = 1_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Measure how fast a round is added where its updates lie, and simulate a large one on many machines.

    The updates are written to a folder or a store, added there, in turn with reading them through fsspec alone, and
    removed. What a worker takes is what the simulation goes by; all that it assumes is printed with it. With --rates
    nothing is measured: an earlier file of results has the rates.
    """
    parser.add_argument(
        "--place", metavar="URL", help="a folder or store for the updates (default: a temporary folder)"
    )
    exact = [name for name, setting in SETTINGS.items() if setting.fixed]
    parser.add_argument(
        "--setting", choices=exact, default="flashe-16", metavar="NAME", help=f"{', '.join(exact)} (default: flashe-16)"
    )
    parser.add_argument("--parameters", type=int, default=20_000_000, metavar="N", help="of the model (default: 2·10⁷)")
    parser.add_argument("--updates", type=int, default=12, metavar="N", help="how many are added (default: 12)")
    parser.add_argument("--turns", type=int, default=3, metavar="N", help="how often each is measured (default: 3)")
    parser.add_argument("--rates", type=Path, metavar="FILE", help="results of an earlier run: measure nothing")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the results there, as JSON")
    plan = parser.add_argument_group("what is simulated")
    default = Plan()
    plan.add_argument("--sites", type=int, default=default.sites, metavar="N", help="default: %(default)s")
    size = default.update_nbytes // _MEGABYTE
    plan.add_argument("--megabytes", type=int, default=size, metavar="N", help="of an update (default: %(default)s)")
    plan.add_argument("--nodes", type=int, default=default.nodes, metavar="N", help="machines (default: %(default)s)")
    plan.add_argument("--cores", type=int, default=default.cores, metavar="N", help="of each (default: %(default)s)")
    plan.add_argument("--gbit", type=float, default=default.node_bits / 1e9, metavar="X", help="link (default: 10)")
    plan.add_argument("--shards", type=int, default=0, metavar="N", help="ranges (default: one each 32 MiB)")
    names = ", ".join(field.name for field in fields(Prices))
    plan.add_argument("--price", action="append", default=[], metavar="NAME=X", help=f"in dollars; of {names}")


def run(options: argparse.Namespace) -> None:
    """Measure or read rates, simulate, print, and write the results if that is asked for."""
    prices, plan = _prices(options.price), _plan(options)
    if options.out is not None:
        check_out(options.out, "shards")
    if options.rates is not None:
        known = read_file(options.rates)
        if known.kind != "shards":
            raise ConfigError(
                f"{options.rates} holds results of {show(known.kind)}; give those of `secagg bench shards`"
            )
        rate = known.data["server"]["nbytes_per_second"]
        data = conclude(known.data["rows"], plan, prices, rate, known.data["memory"])
        results = replace(known, data=data)
    elif options.place is not None:
        results = _measured(options, options.place, plan, prices)
    else:
        with TemporaryDirectory() as folder:
            results = _measured(options, folder, plan, prices)
    for table in shards_tables(results):
        print(f"\n{table.caption}")
        tables.print_table(table.head[:1], table.head[1:], map(tables.Row, table.rows))
        print("", *tables.wrapped([table.note], 110), sep="\n")
    print("", *(simulation.__doc__ or "").splitlines()[2:], f"measured: {show_source(results)}", sep="\n")
    if options.out is not None:
        results.save(options.out)
        print(f"{options.out} is written")


def _measured(options: argparse.Namespace, place: str, plan: Plan, prices: Prices) -> Results:
    for name in ("parameters", "updates", "turns"):
        if getattr(options, name) < (least := 2 if name == "updates" else 1):
            raise ConfigError(f"--{name} is {getattr(options, name)}; give {least} at least")
    urls: tuple[str, ...] = ()
    with TemporaryDirectory() as folder:
        try:
            with progress(f"{options.updates} updates of {options.parameters:,} parameters") as bar:
                kit = Path(folder, "kit")
                made = lay(place, kit, options.setting, options.parameters, options.updates, report=bar)
            urls = made.urls
            with progress("read and add") as bar:
                row = measure(made, place, options.turns, report=bar)
            target = f"{place}/sum"
            worker = worker_memory(made, target)
            urls = (*urls, target)
        finally:
            objects.remove(urls)
    title = SETTINGS[options.setting].title
    where = f"at {place.partition('://')[0]}://" if objects.is_url(place) else "in a folder"
    size = made.nbytes // options.updates
    row |= {"setting": options.setting, "title": title, "where": where, "sites": options.updates}
    row |= {"nbytes": made.nbytes, "update_nbytes": size, "worker_nbytes": worker["above_nbytes"]}
    memory = [{"title": title, "update_nbytes": size, "sites": options.updates, "shards": None, "workers": 1, **worker}]
    return Results("shards", shlex.join(["secagg", *sys.argv[1:]]), conclude([row], plan, prices, None, memory))


def _plan(options: argparse.Namespace) -> Plan:
    for name in ("sites", "megabytes", "nodes", "cores", "gbit"):
        if not getattr(options, name) > 0:
            raise ConfigError(f"--{name} is {getattr(options, name)}; give a number above 0")
    if options.shards < 0:
        raise ConfigError(f"--shards is {options.shards}; give a number from 1 on")
    return Plan(
        sites=options.sites,
        update_nbytes=options.megabytes * _MEGABYTE,
        nodes=options.nodes,
        cores=options.cores,
        node_bits=options.gbit * 1e9,
        shards=options.shards,
    )


def _prices(given: list[str]) -> Prices:
    known = {field.name for field in fields(Prices)}
    found: dict[str, Any] = {}
    for text in given:
        name, _, value = text.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if name not in known or not 0 <= number < float("inf"):
            raise ConfigError(f"--price is {show(text)}; give NAME=DOLLARS, of {', '.join(sorted(known))}")
        found[name] = number
    return Prices(**found)
