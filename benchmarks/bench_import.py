"""What `import secagg` takes in a fresh process, beyond what NumPy takes."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

ROUNDS = 9

PROGRAM = """
import json, sys, time, numpy
before, start = set(sys.modules), time.perf_counter()
import secagg
seconds = time.perf_counter() - start
foreign = {name.partition(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names
foreign = {name for name in foreign if "cython" not in name} - {"numpy", "secagg", "secagg_ext"}
print(json.dumps([seconds, sorted(foreign)]))
"""


def test_import(benchmark, report):
    results = []

    def turn() -> None:
        process = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True)
        results.append(json.loads(process.stdout))

    benchmark.pedantic(turn, rounds=ROUNDS, warmup_rounds=1)
    assert all(foreign == [] for _, foreign in results)
    seconds = statistics.median(seconds for seconds, _ in results[1:])
    benchmark.extra_info["seconds"] = seconds
    del benchmark.extra_info["peak_nbytes"]  # of the process that waits
    report.measure("import", seconds, f"median of {ROUNDS} processes")
