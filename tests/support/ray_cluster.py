"""A Ray cluster on this machine: nodes with a raylet and one processor each, in processes of their own.

A process hosts it by Ray's own `Cluster`, whose nodes die with it; it ends with its standard input, so with the process
that started it, however that ends. Folders and ports are the cluster's own: nothing lies in /tmp/ray, and the dashboard
is off.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psutil
from mortal import free_port

#: Of each node, bytes: the least that Ray takes.
_STORE_NBYTES = 80 << 20


@dataclass
class RayCluster:
    """A cluster that runs; `running_ray` starts it. Drivers join it by its head's node, the first of `nodes`."""

    process: subprocess.Popen[str]
    folder: str
    address: str
    client: str
    gcs: int
    nodes: list[int]  # of each node, the process of its raylet

    @property
    def environment(self) -> dict[str, str]:
        """With these variables ``auto`` means this cluster."""
        return {"RAY_TMPDIR": self.folder}

    def busy(self) -> dict[int, int]:
        """The processes that run a task of a sum, each with its node."""
        return {worker: node for node in self.nodes for worker in _children(node) if "_add" in _title(worker)}

    def idle(self, seconds: float = 20.0) -> bool:
        """Whether no process runs a task, soon: on a busy machine one that was cancelled takes a moment to end."""
        deadline = time.monotonic() + seconds
        while self.busy() and time.monotonic() < deadline:
            time.sleep(0.05)
        return not self.busy()

    def kill_node(self, node: int) -> None:
        """Kill a node's raylet, and all that it has started."""
        self.nodes.remove(node)
        kill(node, *_children(node))

    def add_node(self, **options: Any) -> int:
        """Start another node; `options` are those of Ray's `Cluster.add_node`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(options) + "\n")
        self.process.stdin.flush()
        self.nodes.append(json.loads(self.process.stdout.readline()))
        return self.nodes[-1]


def kill(*processes: int) -> None:
    """Kill processes, those that are still there."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _children(process: int) -> list[int]:
    with suppress(psutil.NoSuchProcess):
        return [child.pid for child in psutil.Process(process).children(recursive=True)]
    return []


def _title(process: int) -> str:
    """What a worker says of itself: the task that it runs."""
    with suppress(psutil.NoSuchProcess):
        return " ".join(psutil.Process(process).cmdline())
    return ""


@contextmanager
def running_ray(nodes: int = 3, processors: int = 1, **variables: str) -> Iterator[RayCluster]:
    """A cluster while the block lasts; its processes have these environment variables, too."""
    folder = tempfile.mkdtemp(prefix="secagg-ray-")  # short: names of sockets are
    environment = os.environ | {"RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0"} | variables
    process = subprocess.Popen(
        [sys.executable, __file__, str(nodes), str(processors)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"no Ray cluster: see the logs in {folder}"
        yield RayCluster(process, folder, **json.loads(line))
    finally:
        with process:
            process.kill()
        _end(folder)


def _end(folder: str) -> None:
    """Kill what is left of a cluster: its host is gone, and each of its processes has its folder in the environment."""
    own = os.getpid()
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.pid != own and process.environ().get("RAY_TMPDIR") == folder:
                process.kill()
                process.wait(10)
    shutil.rmtree(folder, ignore_errors=True)


def _host(count: int, processors: int) -> None:
    """Start nodes, say so, start others as they are ordered, until the standard input ends."""
    import logging

    logging.disable()
    from ray.cluster_utils import Cluster

    said, sys.stdout = sys.stdout, sys.stderr
    settings = {"num_cpus": processors, "object_store_memory": _STORE_NBYTES, "include_log_monitor": False}
    # One of several that is killed is lost within two seconds, else within half a minute.
    quick = {"health_check_period_ms": 500, "health_check_failure_threshold": 3, "health_check_initial_delay_ms": 0}
    health = quick if count > 1 else {}
    cluster = Cluster()
    head = {"no_monitor": True, "include_dashboard": False, "ray_client_server_port": free_port()}
    cluster.add_node(_system_config=health, **head, **settings)
    for _ in range(1, count):
        cluster.add_node(wait=False, **settings)
    cluster.wait_for_nodes()

    def raylet(node: Any) -> int:
        return int(node.all_processes["raylet"][0].process.pid)

    assert cluster.head_node is not None
    print(
        json.dumps(
            {
                "address": cluster.address,
                "client": f"ray://127.0.0.1:{head['ray_client_server_port']}",
                "gcs": cluster.head_node.all_processes["gcs_server"][0].process.pid,
                "nodes": [raylet(node) for node in cluster.list_all_nodes()],
            }
        ),
        file=said,
        flush=True,
    )
    try:
        for line in sys.stdin:
            print(raylet(cluster.add_node(**settings | json.loads(line))), file=said, flush=True)
    finally:
        _end(os.environ["RAY_TMPDIR"])


if __name__ == "__main__":
    _host(*map(int, sys.argv[1:]))
