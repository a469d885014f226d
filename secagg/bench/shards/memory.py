"""Memory of a worker: all of ``secagg.shards.aggregate`` in a fresh process, by the kernel's high-water mark."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from ...errors import SecAggError
from .updates import ROUND, Round

#: What a fresh process runs. It looks at its memory before it loads anything, and again when `secagg` is there.
_PROGRAM = """
import json, sys

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name + ":"))

bare = status("VmRSS")
import secagg
loaded = status("VmRSS")
from secagg.shards import ThreadPool, aggregate

kit, round, target, shards, workers, *urls = json.loads(sys.stdin.read())
report = aggregate(kit, urls, target, round, pool=ThreadPool(workers), shards=shards)
assert not report.left_out and report.passes == 1, report
print(json.dumps({"above_nbytes": status("VmHWM") - bare, "above_import_nbytes": status("VmHWM") - loaded}))
"""


def worker_memory(round: Round, target: str, *, shards: int | None = None, workers: int = 1) -> dict[str, Any]:
    """Add a round in a fresh process; return how much memory there was at a time.

    Parameters
    ----------
    round : Round
        The updates.
    target : str
        Path or URL of the sum; it stays there.
    shards : int, optional
        Number of ranges.
    workers : int
        Ranges that are added at a time.

    Returns
    -------
    mapping
        ``above_nbytes``: the peak above that of Python when it has started; ``above_import_nbytes``: above that when
        ``import secagg`` is done, which loads NumPy.
    """
    given = json.dumps([str(round.kit), ROUND, target, shards, workers, *round.urls])
    done = subprocess.run([sys.executable, "-c", _PROGRAM], input=given, capture_output=True, text=True)
    if done.returncode:
        raise SecAggError(f"the worker failed: {done.stderr.strip()[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found
