"""What both fuzzers have in common: atheris, its options, and the bound on memory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager

import atheris
import fuzz_paths  # noqa: F401

DEFAULTS = ["-timeout=10", "-rss_limit_mb=2048", "-max_len=300000", "-len_control=0"]
#: Bytes of addresses beyond those at the start.
MEMORY_NBYTES = 1 << 30

Mutate = Callable[[bytes, int], bytes]


def instrumented() -> AbstractContextManager[object]:
    """Count what is reached of secagg in what the block imports."""
    return atheris.instrument_imports(include=["secagg"])


def run(target: Callable[[bytes], None], mutator: Callable[[Mutate], Callable[[bytes, int, int], bytes]]) -> None:
    """Fuzz with the options of the command line; those that it does not give have defaults."""
    from fuzz_worlds import limit_memory

    limit_memory(MEMORY_NBYTES)
    given = {option.split("=")[0] for option in sys.argv}
    options = [option for option in DEFAULTS if option.split("=")[0] not in given]
    mutate = mutator(lambda data, size: atheris.Mutate(data, size))  # Fuzz() gives the name its meaning
    atheris.Setup([sys.argv[0], *options, *sys.argv[1:]], target, custom_mutator=mutate)
    atheris.Fuzz()
