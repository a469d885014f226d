"""Coverage-guided fuzzing of the server's calls; libFuzzer's options and folders follow on the command line.

    python tests/fuzz/fuzz_server.py -max_total_time=600 WORK tests/fuzz/corpus/handlers

It fails on a call that ends with neither a reply nor a typed error, on an acknowledged update that is lost or added
twice, on a disk beyond its quota, on a script that takes ten seconds, and on memory beyond a bound.
"""

from __future__ import annotations

import fuzz_run

with fuzz_run.instrumented():
    from fuzz_handlers import Script
    from fuzz_script_mutator import ScriptMutator

if __name__ == "__main__":
    fuzz_run.run(Script, ScriptMutator)
