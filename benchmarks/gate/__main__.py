"""``make bench-check``: does this change make secagg slower, or its messages larger, than another commit?

Both are built and take turns in one job, each in a process of its own, and every number is a ratio of turns that stood
beside each other. Ends with 1 if a benchmark has become worse, with 2 if that could not be found out.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path

from pairing import measure
from table import show
from trees import GateError, both_trees, commit_of, describe, sizes_changed
from verdict import Row, as_json, check_compared, judge

from secagg.bench.machine import machine
from secagg.bench.results import Results
from secagg.ui.progress import progress

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / ".benchmarks" / "gate.json"
HISTORY = ROOT / "benchmarks" / "results" / "history.jsonl"
EXAMPLES = """examples:
  make bench-check                               against origin/main
  make bench-check BASE=HEAD GATE_SECONDS=600    what you have not committed, for ten minutes
  .venv/bin/python benchmarks/gate HEAD~1 --only flashe
"""


def gate(base: str, only: list[str], seconds: float) -> tuple[list[Row], str]:
    """Compare the checkout with a commit; write `RESULTS`; return the rows, and the commit."""
    sys.path.insert(0, str(ROOT))  # names of benchmarks are those of the change
    from cases import CASES

    names = [name for name in CASES if not only or any(part in name for part in only)]
    if not names:
        raise GateError(f"no benchmark has {' or '.join(only)} in its name; there are: {', '.join(CASES)}")
    commit = commit_of(ROOT, base)
    with progress(f"build {base} ({commit[:12]})"), both_trees(ROOT, commit) as trees:
        with progress(f"{len(names)} benchmarks in turn, {seconds:.0f} s") as report:
            measured = measure(trees, names, seconds, report)
        on_purpose = sizes_changed(trees["base"], ROOT)
    rows = [judge(name, found, on_purpose) for name, found in measured.items()]
    RESULTS.parent.mkdir(exist_ok=True)
    Results("gate", f"make bench-check BASE={base}", {"base": commit, **as_json(rows, measured)}).save(RESULTS)
    check_compared(rows)
    return rows, commit


def record(rows: list[Row], commit: str) -> None:
    """Append a line to the history."""
    line = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": describe(ROOT),
        "base": commit[:12],
        "machine": machine(),
        "rows": [row.history() for row in rows if row.cpu is not None],
    }
    HISTORY.parent.mkdir(parents=True, exist_ok=True)
    with HISTORY.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks/gate",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("base", help="commit to compare with, as git names it")
    parser.add_argument("--seconds", type=float, default=240, help="how long turns are taken (default: 240)")
    parser.add_argument("--only", nargs="+", default=[], metavar="PART", help="benchmarks with this in their name")
    parser.add_argument("--record", action="store_true", help=f"append a line to {HISTORY.relative_to(ROOT)}")
    options = parser.parse_args()
    if not options.seconds > 0:
        parser.error(f"--seconds is {options.seconds:g}; give more than 0")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the temporary folder goes
    try:
        rows, commit = gate(options.base, options.only, options.seconds)
    except GateError as error:
        print(f"bench-check: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bench-check: stopped, nothing judged", file=sys.stderr)
        return 130
    show(rows, commit, RESULTS)
    if options.record:
        record(rows, commit)
    return 1 if any(row.failures for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
