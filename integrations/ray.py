"""The tasks of a sum on a Ray cluster: whatever node is free adds a range, and a lost one's ranges are added again."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from importlib.metadata import version
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from secagg.errors import (
    BackendUnavailableError,
    ConfigError,
    SecAggError,
    StateError,
    StorageError,
    TransportError,
    show,
)
from secagg.shards import RangeDone, SumJob, sum_range

__all__ = ["RayPool"]

#: How often a range is added again whose worker or node was lost.
MAX_RETRIES = 20
#: For a port to answer, and for Ray to join a cluster: what does not listen it would ask for many minutes.
_REACH_SECONDS, _JOIN_SECONDS = 5.0, 45.0
#: How often results and nodes are looked for, and when a cluster counts as lost: from 60 s on Ray ends the process.
_WAIT_SECONDS, _LOOK_SECONDS, _LOST_SECONDS = 1.0, 2.0, 40.0
#: How long no node may have a processor: a cluster that grows on demand needs minutes to.
_IDLE_SECONDS = 600.0
#: For tasks that are cancelled to remove what they have half written.
_END_SECONDS = 10.0

log = logging.getLogger(__name__)


class RayPool:
    """Runs tasks on a Ray cluster, each on one processor; see `secagg.shards.aggregate`.

    Every node needs secagg, what it needs for the store, and the store's credentials in its environment. Tasks whose
    worker or node is lost are run again. A cluster that was joined by its address is left when the tasks have ended.

    Parameters
    ----------
    address : str, optional
        ``"HOST:PORT"`` of the cluster's head, from one of its nodes; ``"ray://HOST:PORT"``, from elsewhere; or
        ``"auto"``: that of the environment's ``RAY_ADDRESS``, or the one that was started on this machine. Without
        it, the cluster that ``ray.init`` has joined.
    read : callable, optional
        Told of the bytes of updates of each range that has been added.

    Raises
    ------
    BackendUnavailableError
        If Ray is not installed.
    ConfigError
        If the address is none.
    StateError
        If an address is given, and this process has joined a cluster already; or none, and it has not.
    TransportError
        If there is no such cluster.
    """

    def __init__(self, address: str | None = None, read: Callable[[int], None] = lambda nbytes: None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to Ray's makers that nobody asked for
        try:
            import ray
        except ImportError as error:
            raise BackendUnavailableError(f"Ray is not installed: pip install 'secagg[ray]' ({error})") from error
        self._ray: Any = ray
        self._read = read
        self._address = None if address is None else _checked(address)
        self._joined = False
        if self._address is not None and ray.is_initialized():
            raise StateError(
                "this process has joined a Ray cluster already: give no address, to add there, or call ray.shutdown()"
            )
        self._join()

    def run(self, job: SumJob, indices: Iterable[int]) -> Iterator[RangeDone]:
        """See `secagg.shards.Pool`."""
        ray, tasks = self._ray, list[Any]()
        self._join()
        watch = _Watch(ray)
        try:
            add = ray.remote(num_cpus=1, max_retries=MAX_RETRIES, scheduling_strategy="SPREAD")(_add)
            shared = [ray.put(job.anywhere())]  # in a list: a task opens it when it knows that secagg is the same
            tasks = [add.remote(version("secagg"), shared, index) for index in indices]
            with watch:
                while tasks:
                    watch.check()
                    ended, tasks = ray.wait(tasks, timeout=_WAIT_SECONDS)
                    for task in ended:
                        try:
                            done = ray.get(task, timeout=_WAIT_SECONDS)
                        except ray.exceptions.GetTimeoutError:  # its result was lost with a node, and is made again
                            tasks.append(task)
                            continue
                        if isinstance(done, SecAggError):
                            raise done
                        self._read(job.read_nbytes(done.index))
                        yield done
        except ray.exceptions.RayTaskError as error:
            raise TransportError(
                f"a task failed on the Ray cluster with {type(error.cause).__name__}: see whether all nodes have the "
                f"same secagg, pip install 'secagg[ray]=={version('secagg')}'; the log of the worker says more"
            ) from error
        except (ray.exceptions.RayError, ConnectionError) as error:
            raise TransportError(
                f"the Ray cluster lost a range for good ({type(error).__name__}); start again, to go on with the others"
            ) from error
        finally:
            self._stop([] if watch.lost else tasks)

    def _join(self) -> None:
        """Join the cluster, unless this process has."""
        if not self._ray.is_initialized():
            if self._address is None:
                raise StateError("this process has joined no Ray cluster: name its address, or call ray.init() first")
            _join(self._ray, self._address)
            self._joined = True

    def _stop(self, tasks: list[Any]) -> None:
        """Cancel what is left, and leave the cluster: nothing is added there any more."""
        ray = self._ray
        try:
            if tasks:
                for task in tasks:
                    ray.cancel(task)  # an exception in the task, which removes what it has half written
                _, left = ray.wait(tasks, num_returns=len(tasks), timeout=_END_SECONDS)
                for task in left:
                    ray.cancel(task, force=True)
        except (ray.exceptions.RayError, ConnectionError) as error:
            log.debug("tasks were not cancelled: %s", type(error).__name__)
        finally:
            if self._joined:
                self._joined = False
                ray.shutdown()


def _checked(address: object) -> str:
    """Return the address of a cluster that Ray would join, and not start."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or "auto"
    if isinstance(address, str) and (address == "auto" or all(_place(address))):
        return address
    raise ConfigError(f"the Ray cluster's address is {show(address)}; give HOST:PORT, ray://HOST:PORT, or auto")


def _place(address: str) -> tuple[str, int]:
    """Return host and port of an address; nothing of what is none."""
    with suppress(ValueError):
        parts = urlsplit(address if "://" in address else f"//{address}")
        if parts.scheme in ("", "ray"):
            return parts.hostname or "", parts.port or 0
    return "", 0


def _join(ray: Any, address: str) -> None:
    """Join a cluster, in bounded time."""
    remedy = "is it started, `ray start --head`, and reached from here? From a machine that is no node of it: ray://HOST:10001"
    if address != "auto":
        try:
            socket.create_connection(_place(address), _REACH_SECONDS).close()
        except OSError as error:
            raise TransportError(f"no Ray cluster at {address} ({error.strerror or error}): {remedy}") from None
    failed: list[Exception] = []

    def join() -> None:
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # noqa: BLE001  each way to join has its own
            failed.append(error)

    # In a thread, since Ray asks for minutes.
    thread = threading.Thread(target=join, name="secagg-ray-join", daemon=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of what Ray will do with GPUs
        thread.start()
        thread.join(_JOIN_SECONDS)
    handler = signal.getsignal(signal.SIGTERM)
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # Ray's native one would end the process before anything is cleared up
    if thread.is_alive():
        raise TransportError(f"no Ray cluster at {address}: no answer for {_JOIN_SECONDS:.0f} s; {remedy}")
    if failed:
        with suppress(Exception):
            ray.shutdown()  # a client that was refused stays one, and could join nothing else
        raise TransportError(f"no Ray cluster at {address} ({type(failed[0]).__name__}): {remedy}") from failed[0]


class _Watch:
    """Looks for the cluster's nodes: Ray itself would wait for ever for one that has lost its head."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._own = ""
        self._head: tuple[str, int] | None = None
        self._stopped = threading.Event()
        self._seen = self._processor = time.monotonic()
        self._thread = threading.Thread(target=self._look, name="secagg-ray-watch", daemon=True)

    @property
    def lost(self) -> bool:
        """Whether head or own node was not seen for long, or Ray has left: by a call it would join, or start, any."""
        return not self._ray.is_initialized() or time.monotonic() - self._seen > _LOST_SECONDS

    def check(self) -> None:
        """Raise `TransportError` if nothing will be added any more."""
        if self.lost:
            raise TransportError(
                "the head of the Ray cluster, or this machine's node, is lost; "
                "start again when it is there, to go on with the partial sums"
            )
        if time.monotonic() - self._processor > _IDLE_SECONDS:
            raise TransportError(
                f"no node of the Ray cluster has had a processor for {_IDLE_SECONDS:.0f} s: add one, "
                "`ray start --address HOST:PORT`"
            )

    def _look(self) -> None:
        while not self._stopped.wait(_LOOK_SECONDS):
            try:
                if self._head is not None:  # whoever asks a head for nodes that is not there is ended by Ray after 60 s
                    socket.create_connection(self._head, _REACH_SECONDS).close()
                if not self._ray.is_initialized():
                    return
                nodes = [node for node in self._ray.nodes() if node["Alive"]]
                own = [node for node in nodes if node["NodeID"] == self._own]
                if own and self._head is not None:  # of a node that died Ray tells late, and then ends the process
                    place = own[0]["NodeManagerAddress"], own[0]["NodeManagerPort"]
                    try:
                        socket.create_connection(place, _REACH_SECONDS).close()
                    except ConnectionRefusedError:
                        self._seen = -math.inf
                        return
            except Exception as error:  # noqa: BLE001  whatever it is, the nodes were not seen
                log.debug("the nodes of the Ray cluster were not seen: %s", type(error).__name__)
                continue
            if own:
                self._seen = time.monotonic()
            if any(node["Resources"].get("CPU", 0) >= 1 for node in nodes):
                self._processor = time.monotonic()

    def __enter__(self) -> _Watch:
        context = self._ray.get_runtime_context()
        self._own = context.get_node_id()
        if not self._ray.util.client.ray.is_connected():
            self._head = _place(context.gcs_address)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join(_END_SECONDS)


def _add(expected: str, shared: list[Any], index: int) -> RangeDone | SecAggError:
    """Add a range, in a task. What it raises is returned: Ray would hide its type."""
    import ray

    try:
        if (found := version("secagg")) != expected:
            raise BackendUnavailableError(f"secagg is {found}; this sum needs pip install 'secagg[ray]=={expected}'")
        job: SumJob = ray.get(shared[0])
        return sum_range(job, index)
    except (BackendUnavailableError, StorageError, TransportError) as error:  # which another node may not have met
        return type(error)(f"on node {socket.gethostname()}: {error}")
    except SecAggError as error:
        return error
