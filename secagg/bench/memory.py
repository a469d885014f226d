"""Memory, as the kernel counts it."""

from __future__ import annotations

from pathlib import Path

from ..errors import SecAggError


def resident() -> int:
    """Return the bytes that are in memory now."""
    return _field("VmRSS")


def peak() -> int:
    """Return the most bytes that have been in memory.

    The kernel's high-water mark is of this process alone, unlike ``ru_maxrss``, which survives fork and exec.
    """
    return _field("VmHWM")


def available() -> int:
    """Return the bytes that programs may still take, of this machine or of the container that this is."""
    free = _field("MemAvailable", Path("/proc/meminfo"))
    limit, used = (Path("/sys/fs/cgroup", name) for name in ("memory.max", "memory.current"))
    try:
        return min(free, int(limit.read_text(encoding="ascii")) - int(used.read_text(encoding="ascii")))
    except (OSError, ValueError):  # there are no such files, or "max"
        return free


def _field(name: str, path: Path = Path("/proc/self/status")) -> int:
    for line in path.read_text(encoding="ascii").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise SecAggError(f"{path} has no {name}: memory is measured on Linux")
