"""Tables of a round that is added where its updates lie: measured, simulated on many machines, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..results import Results
from ..shards.measure import ratio, scaling, seconds
from .numbers import show_bytes, show_number, show_ratio, show_source, show_time
from .tables import NONE, Table

Row = Mapping[str, Any]


def shards_tables(results: Results) -> Iterator[Table]:
    """Yield the tables of a file of kind ``"shards"``."""
    yield from server_tables(results)
    yield from speed_tables(results)
    yield costs_table(results)


def server_tables(results: Results) -> Iterator[Table]:
    """Yield when one server is enough, if one was measured."""
    if results.data["server"]["enough"]:
        yield _enough(results.data["server"], _source(results))


def speed_tables(results: Results) -> Iterator[Table]:
    """Yield what was measured, and what is simulated from it."""
    data, source = results.data, _source(results)
    yield _measured(data["rows"], source)
    if data["memory"]:
        yield _memory(data["memory"], source)
    yield _stages(data["simulation"][0], data["rates"], source)
    yield _variants(data["simulation"], source)


def _measured(rows: list[Row], source: str) -> Table:
    head = (
        "",
        "where",
        "updates",
        "read alone",
        "added",
        "by reading",
        "2 workers",
        "scaling",
        "CPU of a GB",
        "store's",
    )
    cells = []
    for row in rows:
        speeds = [row["nbytes"] / seconds(row, side) for side in ("read_1", "sum_1", "sum_2")]
        own = " → ".join(
            show_time(seconds(row, side, "cpu_seconds") / row["nbytes"] * 1e9) for side in ("read_1", "sum_1")
        )
        store = [seconds(row, side, "store_cpu_seconds") / row["nbytes"] * 1e9 for side in ("read_1", "sum_1")]
        cells.append(
            (
                row["title"],
                row["where"],
                f"{row['sites']} × {show_bytes(row['update_nbytes'])}",
                *(f"{show_bytes(speed)}/s" for speed in speeds[:2]),
                show_ratio(ratio(row, "read_1", "sum_1")),
                f"{show_bytes(speeds[2])}/s",
                show_ratio(scaling(row)),
                own,
                " → ".join(map(show_time, store)) if any(store) else NONE,
            )
        )
    note = (
        "Read alone: the same objects through fsspec, in as large pieces, as many at a time, and dropped. One worker, "
        "and then two; scaling: how much faster two add than one, by how much faster twice as many readers read. CPU: "
        "seconds of a core to read a GB, and to add it; those of the store's own process, which is on the same cores, "
        "beside. Medians of turns."
    )
    return Table("A round added where its updates lie, and the same bytes only read", head, cells, note, source)


def _memory(rows: list[Row], source: str) -> Table:
    cells = [
        (
            row["title"],
            f"{row['sites']} × {show_bytes(row['update_nbytes'])}",
            str(row["shards"] or "one each 32 MiB"),
            str(row["workers"]),
            show_bytes(row["above_nbytes"]),
            show_bytes(row["above_import_nbytes"]),
        )
        for row in rows
    ]
    head = ("", "updates", "ranges", "workers", "above Python", "above import secagg")
    note = "Most memory of the whole process at a time, driver and workers, by the kernel's VmHWM."
    return Table("Memory of a worker, whatever the model", head, cells, note, source)


def _stages(simulated: Row, rates: Row, source: str) -> Table:
    plan = simulated["plan"]
    cells = [
        (
            stage["name"],
            show_time(stage["seconds"]),
            show_bytes(stage["nbytes"]) if stage["nbytes"] else NONE,
            f"{stage['requests']:,}" if stage["requests"] else NONE,
            stage["bound"],
        )
        for stage in simulated["stages"]
    ]
    note = (
        f"Measured: of a worker's core {show_time(rates['sum_seconds'] * 1e9)} a GB, of the driver "
        f"{show_time(rates['head_seconds'])} an update ({rates['where']}). Assumed: a machine's link "
        f"{plan['node_bits'] / 1e9:g} Gbit/s, a site's {plan['site_bits'] / 1e9:g} Gbit/s; the store answers after "
        f"{show_time(plan['latency'])}, sends {show_bytes(plan['stream'])}/s a request, takes {plan['gets']:,.0f} "
        f"reads a second, copies a range in {show_time(plan['copy_seconds'])}; the slowest worker takes "
        f"{plan['slow']:g} times as long. Memory: {show_bytes(simulated['node_nbytes'])} of a machine's workers, "
        f"{show_bytes(simulated['driver_nbytes'])} of the digests that the driver keeps."
    )
    size = f"{plan['sites']:,} sites × {show_bytes(plan['update_nbytes'])} on {plan['nodes']} × {plan['cores']} cores"
    return Table(f"Simulated: {size}", ("", "time", "bytes", "requests", "bound by"), cells, note, source)


def _variants(simulation: list[Row], source: str) -> Table:
    cells = []
    for simulated in simulation:
        plan, stages = simulated["plan"], {stage["name"]: stage for stage in simulated["stages"]}
        speed = plan["sites"] * plan["update_nbytes"] / simulated["added_seconds"]
        cells.append(
            (
                simulated["name"],
                show_time(stages["ranges"]["seconds"]),
                stages["ranges"]["bound"],
                show_time(simulated["added_seconds"]),
                f"{show_bytes(speed)}/s",
                f"{sum(stage['requests'] for stage in simulated['stages']):,}",
            )
        )
    head = ("", "ranges", "bound by", "from the last update to the sum", "which is", "requests in all")
    return Table("Simulated: if one thing is otherwise", head, cells, "", source)


def costs_table(results: Results) -> Table:
    """Return what rounds cost."""
    data = results.data
    prices = data["prices"]
    cells = [
        (
            f"{row['sites']:,} × {show_bytes(row['update_nbytes'])}",
            str(row["nodes"]),
            str(row["shards"]),
            show_time(row["added_seconds"]),
            f"{row['puts']:,.0f}",
            f"{row['gets']:,.0f}",
            *(_dollars(row[part]) for part in ("storage", "requests", "egress", "machines", "total")),
        )
        for row in data["costs"]
    ]
    head = (
        "sites",
        "machines",
        "ranges",
        "to the sum",
        "writes",
        "reads",
        "storage",
        "requests",
        "egress",
        "hours",
        "a round",
    )
    note = (
        f"Prices are assumed, about those of AWS in US East, and change with --price: ${prices['storage']:g} a GB "
        f"and month, kept {prices['kept']:g} h; ${prices['puts']:g} a thousand writes, ${prices['gets']:g} a thousand "
        f"reads; ${prices['egress']:g} a GB to sites outside, none to those in the same region; ${prices['node']:g} an "
        "hour of a machine, for as long as the sum takes."
    )
    return Table("What a round costs", head, cells, note, _source(results))


def _enough(server: Row, source: str) -> Table:
    speed, found = server["nbytes_per_second"], server["enough"]
    nodes = list(dict.fromkeys(row["nodes"] for row in found))
    most = {(row["update_nbytes"], row["nodes"]): row["sites"] for row in found}
    cells = [
        (
            show_bytes(nbytes),
            *(f"{int(speed * seconds / nbytes):,} sites" for seconds in (600, 3600)),
            *("never" if most[nbytes, count] is None else f"{most[nbytes, count]:,} sites" for count in nodes),
        )
        for nbytes in dict.fromkeys(row["update_nbytes"] for row in found)
    ]
    note = (
        f"One server takes, keeps and adds {show_bytes(speed)}/s over mutual TLS, measured by "
        f"benchmarks/bench_server.py: {show_bytes(3600 * speed)} in an hour. It adds what arrives at once; the "
        "machines, of 16 cores and simulated, begin when the last update is in the store."
    )
    others = (f"{count} machine{'s are' if count > 1 else ' is'} faster beyond" for count in nodes)
    return Table(
        "When one server is enough",
        ("an update", "one server takes in ten minutes", "in an hour", *others),
        cells,
        note,
        source,
    )


def _source(results: Results) -> str:
    return f"{results.command}; {show_source(results)}"


def _dollars(value: float) -> str:
    return f"${show_number(value)}" if value else "$0"
