"""The tasks of a sum on a Ray cluster: whatever node is free adds a range, and a lost one's ranges are added again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from secagg.errors import BackendUnavailableError, SecAggError, TransportError
from secagg.shards import RangeDone, SumJob, sum_range

#: How often a range is added again whose worker or node was lost.
MAX_RETRIES = 20


class RayPool:
    """Runs tasks on a Ray cluster, each on one processor; see `secagg.shards.aggregate`.

    Every node needs secagg, what it needs for the store, and the store's credentials in its environment.

    Parameters
    ----------
    address : str, optional
        As of ``ray.init``: ``"auto"``, ``"HOST:PORT"`` or ``"ray://HOST:PORT"``. Without it, the cluster that
        ``ray.init`` has joined.
    read : callable, optional
        Told of the bytes of updates of each range that has been added.

    Raises
    ------
    BackendUnavailableError
        If Ray is not installed.
    TransportError
        If there is no such cluster.
    """

    def __init__(self, address: str | None = None, read: Callable[[int], None] = lambda nbytes: None) -> None:
        try:
            import ray
        except ImportError as error:
            raise BackendUnavailableError("Ray is not installed: pip install 'secagg[ray]'") from error
        self._ray: Any = ray
        self._read = read
        if address is not None and not ray.is_initialized():
            try:
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise TransportError(f"no Ray cluster at {address}: {error}") from error

    def run(self, job: SumJob, indices: Iterable[int]) -> Iterator[RangeDone]:
        """See `secagg.shards.Pool`."""
        ray = self._ray
        add = ray.remote(num_cpus=1, max_retries=MAX_RETRIES)(_add)
        shared = ray.put(job)
        tasks = [add.remote(shared, index) for index in indices]
        try:
            while tasks:
                (ended,), tasks = ray.wait(tasks, num_returns=1)
                try:
                    done = ray.get(ended)
                except ray.exceptions.RayError as error:
                    raise TransportError(f"the Ray cluster lost a range for good: {type(error).__name__}") from error
                if isinstance(done, SecAggError):
                    raise done
                self._read(0)
                yield done
        finally:
            for task in tasks:
                ray.cancel(task, force=True)


def _add(job: SumJob, index: int) -> RangeDone | SecAggError:
    """Return what a task has raised: Ray would hide its type."""
    try:
        return sum_range(job, index)
    except SecAggError as error:
        return error
