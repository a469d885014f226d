"""What both fuzzers have in common: atheris, its options, and the bound on memory."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NoReturn

import atheris
import fuzz_paths  # noqa: F401

DEFAULTS = ["-timeout=10", "-rss_limit_mb=2048", "-max_len=300000", "-len_control=0"]
#: Bytes of addresses beyond those at the start.
MEMORY_NBYTES = 1 << 30
#: What one input may add to the peak of the memory in use.
INPUT_KIB = 64 << 10

Mutate = Callable[[bytes, int], bytes]


def instrumented() -> AbstractContextManager[object]:
    """Count what is reached of secagg in what the block imports."""
    return atheris.instrument_imports(include=["secagg"])


def run(
    target: Callable[[str], Callable[[bytes], None]], mutator: Callable[[Mutate], Callable[[bytes, int, int], bytes]]
) -> None:
    """Fuzz with the options of the command line; those that it does not give have defaults.

    `target` makes what is fuzzed from a folder to work in, which is removed at the end: libFuzzer does not return, so
    it is another process that waits for it.
    """
    from fuzz_worlds import scratch

    with scratch() as folder:
        child = os.fork()
        if child == 0:
            _fuzz(target(folder), mutator)
        _, status = os.waitpid(child, 0)
    sys.exit(os.waitstatus_to_exitcode(status))


def _fuzz(target: Callable[[bytes], None], mutator: Callable[[Mutate], Callable[[bytes, int, int], bytes]]) -> NoReturn:
    from fuzz_worlds import limit_memory

    def bounded(data: bytes) -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        target(data)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown <= INPUT_KIB, f"an input of {len(data)} bytes took {grown} KiB"

    limit_memory(MEMORY_NBYTES)
    given = {option.split("=")[0] for option in sys.argv}
    options = [option for option in DEFAULTS if option.split("=")[0] not in given]
    mutate = mutator(lambda data, size: atheris.Mutate(data, size))  # Fuzz() gives the name its meaning
    atheris.Setup([sys.argv[0], *options, *sys.argv[1:]], bounded, custom_mutator=mutate)
    atheris.Fuzz()
    os._exit(0)
