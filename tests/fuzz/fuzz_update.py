"""Coverage-guided fuzzing of what reads bytes of others; libFuzzer's options and folders follow on the command line.

    python tests/fuzz/fuzz_update.py -max_total_time=600 WORK tests/fuzz/corpus/parsers

It fails on any error that is no `SecAggError`, on an input that takes ten seconds, and on memory beyond a bound.
"""

from __future__ import annotations

import fuzz_run

with fuzz_run.instrumented():
    from fuzz_mutator import Mutator
    from fuzz_parsers import Reader

if __name__ == "__main__":
    fuzz_run.run(Reader, Mutator)
