"""One side of the gate: ``python worker.py TREE`` times what it is told to, on standard input, a JSON line each.

It stays for many turns. Standard error has what libraries say.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any


def imported_from(tree: Path) -> None:
    """Refuse to time another tree than that."""
    import secagg
    import secagg_ext

    for module in (secagg, secagg_ext):
        found = Path(str(module.__file__)).resolve()
        if not found.is_relative_to(tree):
            raise ImportError(f"{module.__name__} is {found}, not that of {tree}")


class Worker:
    """What has been prepared, by name."""

    def __init__(self) -> None:
        self._work: dict[str, Callable[[], object]] = {}

    def case(self, name: str) -> dict[str, Any]:
        """Prepare a benchmark; say how many bytes its message has, and what is its calibration."""
        from cases import CASES

        work = CASES[name]()
        self._work[name] = work.run
        return {"nbytes": work.nbytes, "calibration": list(work.calibration), "seconds": self._once(name)}

    def calibration(self, name: str, kind: str, amount: int) -> dict[str, Any]:
        """Prepare a calibration."""
        from calibrations import calibration

        self._work[name] = calibration(kind, amount)
        return {"seconds": self._once(name)}

    def turn(self, name: str, repeats: int) -> dict[str, Any]:
        """Repeat something; return the seconds of all repeats, on the wall and of this process's CPU."""
        run = self._work[name]
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(repeats):
            run()
        return {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}

    def _once(self, name: str) -> float:
        self.turn(name, 1)
        return float(self.turn(name, 1)["wall"])


def main(tree: Path) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # libraries print that a model is larger than a ciphertext
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it ends it
    warnings.simplefilter("ignore")
    worker = Worker()

    def answer(work: Callable[..., Any], *args: Any) -> None:
        try:
            result = work(*args) or {}
        except Exception as error:  # noqa: BLE001  # it is told what cannot be run, whatever the reason
            result = {"problem": f"{type(error).__name__}: {error}"}
        print(json.dumps(result), file=answers, flush=True)

    answer(imported_from, tree)
    for line in sys.stdin:
        what, *args = json.loads(line)
        answer(getattr(worker, what), *args)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
