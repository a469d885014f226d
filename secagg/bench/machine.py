"""What numbers depend on: the machine, and the libraries."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..scheme.ring import KERNELS

LIBRARIES = ("secagg", "numpy", "tenseal", "Pyfhel", "seal-python", "cryptography", "blake3", "zstandard")


def machine() -> dict[str, Any]:
    """Return the processor, how many cores of it may be used, the load, and the versions of what is installed."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "kernels": KERNELS,
        "libraries": {name: found for name in LIBRARIES if (found := _version(name))},
        "load_average": round(os.getloadavg()[0], 2),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
