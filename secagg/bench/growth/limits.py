"""How many sites each part of the system can take, as its own code says: what breaks first."""

from __future__ import annotations

import inspect
import resource
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ...errors import SecAggError, show_size
from ...integrations.grpc import server as transport
from ...scheme import aggregation
from ...server import Federation, Limits
from ...setup.disk import round_nbytes
from ...storage import yaml_file
from ...ui.units import show_seconds
from ...wire import container
from ..clara.published import ROUND_SECONDS
from ..settings import SETTINGS
from .costs import Costs
from .federation import long_name, project_of, sum_of
from .links import round_seconds

#: No search goes on beyond so many sites.
_MOST = 100_000

#: Of links whose limits are shown: what a hospital has, and what a data centre has.
_LINKS = (1e8, 1e9)


@dataclass(frozen=True)
class Limit:
    """What a number of sites comes up against.

    Parameters
    ----------
    what : str
        In a few words.
    at : int or None
        The most sites that work; None if there are more than were tried.
    why : str
        What happens with one more, and the number of the code that says so.
    setting : str or None
        Of `SETTINGS`, where it depends on it.
    """

    what: str
    at: int | None
    why: str
    setting: str | None = None


def find_limits(costs: Sequence[Costs]) -> list[Limit]:
    """Return the limits of a federation, those that come first at the beginning.

    Parameters
    ----------
    costs : sequence of Costs
        Of each setting, for one model.
    """
    found = [*_of_any(costs[0]), *(limit for cost in costs for limit in _of_setting(cost))]
    return sorted(found, key=lambda limit: _MOST + 1 if limit.at is None else limit.at)


def most_sites(fits: Callable[[int], object], most: int | None = None) -> int | None:
    """Return the most sites that fit, by trying; None if as many as `most` do.

    Parameters
    ----------
    fits : callable
        Returns whether so many do; an error of secagg says that they do not. If some fit, so do fewer.
    most : int, optional
        How many are tried at most.
    """

    def works(sites: int) -> bool:
        try:
            return bool(fits(sites))
        except SecAggError:
            return False

    low, high, most = 1, 2, most or _MOST
    while works(high):
        if high == most:
            return None
        low, high = high, min(2 * high, most)
    return bisect_left(range(high), True, lo=low + 1, key=lambda sites: not works(sites)) - 1


def _of_any(cost: Costs) -> Iterator[Limit]:
    """Yield the limits that come from names, certificates and connections; some depend a little on the layout."""
    setting, parameters = cost.setting, cost.parameters
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # `secagg serve` raises the soft limit to the hard one
    yield Limit(
        "connections of the server",
        most_sites(lambda sites: sites <= transport.most_connections(files)),
        f"each site keeps one; gRPC takes {transport.most_connections(resource.RLIM_INFINITY):,}, and half of the "
        f"{files:,} files that a process may have open here",
    )
    yield Limit(
        "max_clients",
        most_sites(lambda sites: aggregation.Aggregation(max_clients=sites)),
        f"a configuration takes {aggregation.MAX_CLIENTS:,} at most",
    )
    yield Limit(
        "sites in a manifest",
        most_sites(lambda sites: project_of(setting, parameters, sites).digest),
        f"names of {len(long_name(0))} characters, keys and certificates do not fit its header of "
        f"{show_size(container.MAX_HEADER_NBYTES)}",
    )
    yield Limit(
        "contributions in the head of a sum",
        most_sites(lambda sites: sum_of(setting, parameters, sites).head),
        f"names and nonces do not fit the header of {show_size(container.MAX_HEADER_NBYTES)}",
    )
    yield Limit(
        "sites in project.yaml",
        most_sites(lambda sites: _yaml_nbytes(sites) <= yaml_file.MAX_YAML_NBYTES),
        f"names of {len(long_name(0))} characters do not fit a file of {show_size(yaml_file.MAX_YAML_NBYTES)}",
    )
    idle = Limits().idle_seconds
    for link in _LINKS:
        yield Limit(
            f"downloads at once at {link / 1e6:,.0f} Mbit/s",
            most_sites(partial(_moves, setting, parameters, link, idle)),
            f"simulated: a frame of {show_size(container.MAX_FRAME_NBYTES)}, or the head, takes longer for each than "
            f"--idle-timeout, {show_seconds(idle)} by default; streams are cut off, and resumed",
        )
    threads, which = _most_threads()
    yield Limit(
        "threads of the server",
        most_sites(lambda sites: sites <= threads),
        f"each call that waits for the round has one; {which} allows {threads:,} here",
    )


def _of_setting(cost: Costs) -> Iterator[Limit]:
    setting, parameters = cost.setting, cost.parameters
    timeout = inspect.signature(Federation.__init__).parameters["round_timeout"].default
    limits = Limits()
    for link in _LINKS:
        yield Limit(
            f"a round at {link / 1e6:,.0f} Mbit/s",
            most_sites(partial(_in_time, cost, link, timeout), aggregation.MAX_CLIENTS),
            f"simulated: transfers alone take longer than --round-timeout, {show_seconds(timeout)} by default",
            setting,
        )
    yield Limit(
        "disk of the server",
        most_sites(
            lambda sites: (round_nbytes(project_of(setting, parameters, sites)) or 0) <= limits.disk_quota,
            aggregation.MAX_CLIENTS,
        ),
        f"the updates of a round and three sums are more than --disk-quota, {show_size(limits.disk_quota)} by default",
        setting,
    )
    yield Limit(
        "decryption",
        most_sites(lambda sites: cost.cost(sites).decrypt_seconds <= ROUND_SECONDS, aggregation.MAX_CLIENTS),
        f"it takes longer than a raw round of Clara's training, {ROUND_SECONDS:.0f} s: each site adds a stream",
        setting,
    )
    yield Limit(
        "lanes and noise",
        most_sites(lambda sites: SETTINGS[setting].config(sites), aggregation.MAX_CLIENTS),
        "no params are found that hold the sum",
        setting,
    )


def _in_time(cost: Costs, link: float, timeout: float, sites: int) -> bool:
    return round_seconds(cost.cost(sites), sites, link, Limits().uploads_in_flight) <= timeout


def _moves(setting: str, parameters: int, link: float, idle: float, sites: int) -> bool:
    """Return whether the largest piece of a sum arrives in time where all sites download it at once."""
    largest = max(len(sum_of(setting, parameters, sites).head), container.MAX_FRAME_NBYTES + container.DIGEST_NBYTES)
    return sites * 8 * largest / link <= idle


def _yaml_nbytes(sites: int) -> float:
    """Return the size of a list of so many sites, from that of a shorter one: to write a long one takes seconds."""
    few, more = 100, 200
    sizes = [
        len(yaml_file.to_yaml({"sites": [long_name(number) for number in range(count)]}, flow=True))
        for count in (few, more)
    ]
    return sizes[0] + (sites - few) * (sizes[1] - sizes[0]) / (more - few)


def _most_threads() -> tuple[int, str]:
    """Return how many threads a process of this machine can have, and what says so."""
    kernel = Path("/proc/sys")
    found = {
        name: int((kernel / name).read_text(encoding="ascii")) // share
        for name, share in (("kernel/threads-max", 1), ("kernel/pid_max", 1), ("vm/max_map_count", 2))
    }
    allowed = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    if allowed != resource.RLIM_INFINITY:
        found["ulimit -u"] = allowed
    name = min(found, key=lambda name: found[name])
    return found[name], name


def first_of(limits: Iterable[Limit], setting: str) -> str:
    """Return in a sentence what breaks first of a setting; limits as of `find_limits`."""
    first = next(limit for limit in limits if limit.setting in (None, setting))
    if first.at is None:
        return f"{setting}: nothing breaks before {_MOST:,} sites"
    return f"{setting}: {first.what} first, beyond {first.at:,} sites: {first.why}"
