"""A round over many machines, simulated: from rates of one worker that were measured, without any machine.

What is assumed:

- Each site sends its update to the store over a link of its own, all at once; the store takes them as they come.
- Then one driver looks at every update: pins it, reads its head and its tail, checks signature and manifest. Some are
  looked at at a time; each costs three requests, or the driver's own time, whichever is longer.
- Ranges go to workers, one to a core. A worker reads as fast as the slowest of these lets it: its core, which does
  all that was measured; its share of its machine's link; its requests under way, each after the store's latency and at
  the speed of one stream; its share of the requests that the store takes. Ranges that do not go up in workers make a
  last wave, in which machines share their links among fewer.
- In the last wave one worker is slow, and all wait for it.
- Where some updates are unfit behind their heads, heads and ranges are gone through once more without them.
- The store copies partial sums into one object by itself; some copies are under way at a time.
- Last, every site reads the sum over its link, all at once.
- A core of these machines is as fast as one that was measured, and memory is fast enough for all of them. TLS is in it
  if the store that was measured was reached over https. Machines, and Ray on them, run already. Training, encryption
  and decryption are not in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil

from ...shards.heads import HEADS
from ...shards.job import RANGE_NBYTES
from ...shards.ranges import AHEAD
from ...storage.pinned import WINDOW_NBYTES
from ...storage.remote import COPIES

#: Requests to look at an update: size and version, head, tail.
HEAD_REQUESTS = 3

#: Bytes of a part of a multipart upload.
PART_NBYTES = 2 * WINDOW_NBYTES

#: Bytes of most frames.
FRAME_NBYTES = 1 << 20


@dataclass(frozen=True)
class Rates:
    """What was measured of one worker.

    Parameters
    ----------
    sum_seconds : float
        Of a core, to read, check and add a byte; all that the process does is in it.
    head_seconds : float
        Of the driver, to look at one update.
    worker_nbytes : int
        Most memory of a worker above its start.
    where : str
        On what it was measured.
    """

    sum_seconds: float
    head_seconds: float
    worker_nbytes: int
    where: str


@dataclass(frozen=True)
class Plan:
    """What is simulated.

    Parameters
    ----------
    sites, update_nbytes : int
        The updates.
    nodes, cores : int
        Machines, and workers of each: one a core.
    node_bits : float
        Bits a second of a machine's link.
    shards : int
        Number of ranges; 0: as many as `secagg aggregate` makes.
    site_bits : float
        Bits a second of a site's link.
    latency : float
        Seconds until the store answers a request.
    stream : float
        Bytes a second of one request.
    gets : float
        Reading requests a second that the store takes under the updates' prefix.
    copy_seconds : float
        Of the store, to copy a range.
    slow : float
        How many times as long the slowest worker of the last wave takes.
    unfit : int
        Updates that turn out to be unfit behind their heads.
    """

    sites: int = 1000
    update_nbytes: int = 5_000_000_000
    nodes: int = 16
    cores: int = 16
    node_bits: float = 10e9
    shards: int = 0
    site_bits: float = 1e9
    latency: float = 0.1
    stream: float = 90e6
    gets: float = 5500
    copy_seconds: float = 1.0
    slow: float = 2.0
    unfit: int = 0

    @property
    def nbytes(self) -> int:
        """Of all updates."""
        return self.sites * self.update_nbytes

    @property
    def ranges(self) -> int:
        """How many ranges there are."""
        return self.shards or ceil(self.update_nbytes / RANGE_NBYTES)


@dataclass(frozen=True)
class Stage:
    """A part of the run: seconds, bytes moved between machines and store, requests, and what its time depends on."""

    name: str
    seconds: float
    nbytes: int
    requests: int
    bound: str


def simulate(plan: Plan, rates: Rates) -> list[Stage]:
    """Return the stages of a round, in order."""
    transfer, size = _arrival(plan), plan.update_nbytes
    parts = ceil(size / PART_NBYTES) + 2  # an upload is begun and completed
    once = [*_passes(plan, rates)]
    again = [
        replace(stage, name=f"{stage.name}, once more")
        for stage in (_passes(replace(plan, sites=plan.sites - plan.unfit), rates) if plan.unfit else ())
    ]
    copies = plan.ranges + 2
    return [
        Stage("sites send", transfer, plan.nbytes, plan.sites * parts, "sites' links"),
        *once,
        *again,
        Stage("put together", ceil(plan.ranges / COPIES) * plan.copy_seconds, 0, copies, "the store's copies"),
        Stage("sites read", transfer, plan.nbytes, plan.sites * ceil(size / WINDOW_NBYTES), "sites' links"),
    ]


def added_seconds(plan: Plan, rates: Rates) -> float:
    """Return how long a round takes from the last update in the store to the sum."""
    return sum(stage.seconds for stage in simulate(plan, rates)[1:-1])


def driver_nbytes(plan: Plan) -> int:
    """Return what the driver keeps of frames: 32 bytes of each frame of each update."""
    return plan.sites * ceil(plan.update_nbytes / FRAME_NBYTES) * 32


def server_enough(plan: Plan, rates: Rates, server_rate: float) -> int | None:
    """Return up to how many sites one server is no slower than these machines; None if it is, even with a million.

    A server adds what arrives at once, at `server_rate` bytes a second; the machines begin when the last is there.
    """
    least, most = 0, 1_000_000

    def enough(sites: int) -> bool:
        served = max(_arrival(plan), sites * plan.update_nbytes / server_rate)
        return served <= _arrival(plan) + added_seconds(replace(plan, sites=sites), rates)

    if enough(most):
        return None
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if enough(middle) else (least, middle - 1)
    return least


def _arrival(plan: Plan) -> float:
    return 8 * plan.update_nbytes / plan.site_bits


def _passes(plan: Plan, rates: Rates) -> Iterator[Stage]:
    """Yield what is gone through again where an update is unfit."""
    each = max(HEAD_REQUESTS * plan.latency / HEADS, rates.head_seconds)
    bound = "latency" if each > rates.head_seconds else "the driver's core"
    yield Stage("heads", plan.sites * each, plan.sites * 256 << 10, HEAD_REQUESTS * plan.sites, bound)
    range_nbytes = plan.nbytes / plan.ranges
    windows = plan.sites * ceil(plan.update_nbytes / plan.ranges / WINDOW_NBYTES)
    seconds, left, bound = 0.0, plan.ranges, ""
    while left:
        wave = min(left, plan.nodes * plan.cores)
        rate, slowest = _rate(plan, rates, wave)
        last, bound = range_nbytes / rate, bound or slowest
        seconds += last
        left -= wave
    written = plan.update_nbytes
    puts = plan.ranges * (ceil(plan.update_nbytes / plan.ranges / PART_NBYTES) + 3)
    yield Stage("ranges", seconds, plan.nbytes + written, plan.ranges * windows + puts, bound)
    yield Stage("the slowest worker", (plan.slow - 1) * last, 0, 0, "assumed")


def _rate(plan: Plan, rates: Rates, busy: int) -> tuple[float, str]:
    """Return how many bytes a second a worker adds while so many work, and what it depends on."""
    window = min(WINDOW_NBYTES, plan.update_nbytes / plan.ranges)
    limits = {
        "cores": 1 / rates.sum_seconds,
        "machines' links": plan.node_bits / 8 / ceil(busy / plan.nodes),
        "latency": AHEAD * window / (plan.latency + window / plan.stream),
        "the store's requests": plan.gets * window / busy,
    }
    bound = min(limits, key=limits.__getitem__)
    return limits[bound], bound
