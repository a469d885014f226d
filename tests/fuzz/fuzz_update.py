"""Coverage-guided fuzzing of what reads bytes of others; libFuzzer's options and folders follow on the command line.

    python tests/fuzz/fuzz_update.py -max_total_time=600 WORK tests/fuzz/corpus/parsers

It fails on any error that is no `SecAggError`, on an input that takes ten seconds, and on memory beyond a bound.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "support"), str(Path(__file__).resolve().parent)]

with atheris.instrument_imports(include=["secagg"]):
    from fuzz_mutator import Mutator
    from fuzz_parsers import Reader
    from fuzz_worlds import limit_memory

DEFAULTS = ["-timeout=10", "-rss_limit_mb=2048", "-max_len=200000", "-len_control=0"]


def main() -> None:
    mutator = Mutator(lambda data, size: atheris.Mutate(data, size))  # a name that Fuzz() gives a meaning
    reader = Reader()
    limit_memory(1 << 30)
    names = {option.split("=")[0] for option in sys.argv}
    options = [option for option in DEFAULTS if option.split("=")[0] not in names]
    atheris.Setup([sys.argv[0], *options, *sys.argv[1:]], reader, custom_mutator=mutator)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
