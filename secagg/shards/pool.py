"""Tasks in threads of this process: kernels, digests and reading let others run meanwhile."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed

from ..errors import ConfigError, StateError, show
from .job import RangeDone, SumJob
from .ranges import sum_range


class ThreadPool:
    """Runs tasks in threads.

    Parameters
    ----------
    workers : int, optional
        Ranges that are added at a time; as many as there are processors, if it is not given.
    read : callable, optional
        Told, in any thread, of the bytes of updates that were read.

    Raises
    ------
    ConfigError
        If `workers` is no whole number from 1 on.
    """

    def __init__(self, workers: int | None = None, read: Callable[[int], None] = lambda nbytes: None) -> None:
        if workers is not None and (not isinstance(workers, int) or workers < 1):
            raise ConfigError(f"workers is {show(workers)}; give a whole number from 1 on")
        self._workers = workers or len(os.sched_getaffinity(0))
        self._read = read

    def run(self, job: SumJob, indices: Iterable[int]) -> Iterator[RangeDone]:
        """See `secagg.shards.Pool`."""
        stopped = threading.Event()

        def read(nbytes: int) -> None:
            if stopped.is_set():
                raise StateError("stopped")
            self._read(nbytes)

        with ThreadPoolExecutor(self._workers, thread_name_prefix="secagg-sum") as executor:
            futures = [executor.submit(sum_range, job, index, read) for index in indices]
            try:
                for future in as_completed(futures):
                    yield future.result()
            finally:  # an error, or Ctrl-C: what runs ends at its next window
                stopped.set()
                for future in futures:
                    future.cancel()
