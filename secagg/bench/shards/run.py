"""What a file of results of kind ``"shards"`` holds: what was measured, what is simulated from it, what that costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from math import ceil
from typing import Any

from .measure import seconds
from .prices import CASES, Prices, cost
from .simulation import FRAME_NBYTES, Plan, Rates, added_seconds, driver_nbytes, server_enough, simulate

Row = Mapping[str, Any]

#: Machines that one server is held against.
NODES = (1, 4, 16)


def rates_of(row: Row) -> Rates:
    """Return the rates of one worker, as a row of measurements has them."""
    return Rates(
        sum_seconds=seconds(row, "sum_1", "cpu_seconds") / row["nbytes"],
        head_seconds=row["heads_seconds"] / row["sites"],
        worker_nbytes=row["worker_nbytes"],
        where=f"{row['title']}, {row['where']}",
    )


def variants(plan: Plan) -> dict[str, Plan]:
    """Return what is simulated of a plan: itself, and what may go otherwise."""
    return {
        "as planned": plan,
        "links of 25 Gbit/s": replace(plan, node_bits=25e9),
        "two ranges for each core": replace(plan, shards=2 * plan.nodes * plan.cores),
        "one update unfit": replace(plan, unfit=1),
    }


def conclude(
    rows: Sequence[Row], plan: Plan, prices: Prices, server_rate: float | None, memory: Sequence[Row] = ()
) -> dict[str, Any]:
    """Return the results: rows as they are, and what follows from the first of them.

    Parameters
    ----------
    rows : sequence of mapping
        As `secagg.bench.shards.measure.measure` returns them, with title, place and sizes.
    plan : Plan
        What is simulated.
    prices : Prices
        What it costs.
    server_rate : float or None
        Bytes a second that one server takes and adds, where that was measured.
    memory : sequence of mapping
        Peaks of workers, as of `secagg.bench.shards.memory.worker_memory`.
    """
    rates = rates_of(rows[0])
    simulation = [
        {
            "name": name,
            "plan": asdict(variant),
            "stages": [asdict(stage) for stage in simulate(variant, rates)],
            "added_seconds": added_seconds(variant, rates),
            "node_nbytes": variant.cores * rates.worker_nbytes,
            "driver_nbytes": driver_nbytes(variant),
        }
        for name, variant in variants(plan).items()
    ]

    def of(sites: int, nbytes: int, nodes: int) -> Plan:
        """A round whose ranges are so many that no core is idle, if there are frames enough."""
        case = replace(plan, sites=sites, update_nbytes=nbytes, nodes=nodes, shards=0)
        return replace(case, shards=max(case.ranges, min(nodes * plan.cores, ceil(nbytes / FRAME_NBYTES))))

    costs, enough = [], []
    for sites, nbytes, nodes in CASES:
        case = of(sites, nbytes, nodes)
        told = {"sites": sites, "update_nbytes": nbytes, "nodes": nodes, "shards": case.shards}
        costs.append({**told, "added_seconds": added_seconds(case, rates), **cost(case, rates, prices)})
    for nbytes in sorted({nbytes for _, nbytes, _ in CASES}) if server_rate else ():
        for nodes in NODES:
            most = server_enough(of(plan.sites, nbytes, nodes), rates, server_rate or 0.0)
            enough.append({"update_nbytes": nbytes, "nodes": nodes, "sites": most})
    return {
        "rows": [dict(row) for row in rows],
        "memory": [dict(row) for row in memory],
        "rates": asdict(rates),
        "simulation": simulation,
        "prices": asdict(prices),
        "costs": costs,
        "server": {"nbytes_per_second": server_rate, "enough": enough},
    }
