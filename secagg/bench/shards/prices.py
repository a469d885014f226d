"""What a round costs in a cloud, from the requests, bytes and hours of a simulated one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from ...storage.pinned import WINDOW_NBYTES
from .simulation import HEAD_REQUESTS, PART_NBYTES, Plan, Rates, added_seconds

HOURS_A_MONTH = 730

#: Sites, bytes of an update, machines: what `costs` is asked for.
CASES = (
    (10, 20_000_000, 1),
    (100, 20_000_000, 1),
    (1000, 20_000_000, 1),
    (10, 5_000_000_000, 1),
    (100, 5_000_000_000, 4),
    (1000, 5_000_000_000, 16),
)


@dataclass(frozen=True)
class Prices:
    """Dollars. Those of the fields are assumed: what AWS asks for in US East, rounded, and not looked up by anybody.

    Parameters
    ----------
    storage : float
        A GB (10⁹ bytes) and month.
    puts, gets : float
        A thousand requests: those that write, copy or list; those that read.
    egress : float
        A GB that leaves the cloud; 0 if sites are in it.
    node : float
        A machine of 16 cores and hour.
    kept : float
        Hours for which the updates stay in the store.
    """

    storage: float = 0.023
    puts: float = 0.005
    gets: float = 0.0004
    egress: float = 0.09
    node: float = 0.77
    kept: float = 24


def cost(plan: Plan, rates: Rates, prices: Prices) -> Mapping[str, float]:
    """Return requests, hours of machines, and dollars of a round: of each part, and of all."""
    size, ranges = plan.update_nbytes, plan.ranges
    parts = ceil(size / PART_NBYTES) + 2
    puts = plan.sites * parts + ranges * (ceil(size / ranges / PART_NBYTES) + 3) + ranges + 2
    gets = plan.sites * (HEAD_REQUESTS + ranges * ceil(size / ranges / WINDOW_NBYTES) + ceil(size / WINDOW_NBYTES))
    hours = plan.nodes * added_seconds(plan, rates) / 3600
    dollars = {
        "storage": (plan.nbytes + 2 * size) / 1e9 * prices.kept / HOURS_A_MONTH * prices.storage,
        "requests": puts / 1000 * prices.puts + gets / 1000 * prices.gets,
        "egress": plan.nbytes / 1e9 * prices.egress,
        "machines": hours * prices.node,
    }
    return {"puts": puts, "gets": gets, "node_hours": hours, **dollars, "total": sum(dollars.values())}
