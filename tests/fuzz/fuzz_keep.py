"""Keep what fuzzing has reached: of its inputs, those that take secagg along a way that no input kept before does.

    python tests/fuzz/fuzz_keep.py .fuzz/parsers tests/fuzz/corpus/parsers

Small ones come first, and those beyond `LARGEST` not at all: the corpus is replayed with every run of the tests.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import fuzz_paths  # noqa: F401
from fuzz_handlers import Script
from fuzz_parsers import Reader
from fuzz_worlds import scratch

import secagg

LARGEST = {"parsers": 9_000, "handlers": 40_000}
#: Bytes of each folder of the corpus, after which nothing more is kept.
BUDGET = {"parsers": 560_000, "handlers": 430_000}
ROOTS = (str(Path(secagg.__file__).parent), str(Path(__file__).resolve().parents[2] / "integrations"))

Step = tuple[str, int, int]


class Ways:
    """The steps from line to line that were taken."""

    def __init__(self) -> None:
        self.steps: set[Step] = set()

    def __call__(self, frame: FrameType, event: str, argument: object) -> Any:
        name, last = frame.f_code.co_filename, frame.f_lineno
        if not name.startswith(ROOTS):
            return None

        def follow(frame: FrameType, event: str, argument: object) -> Any:
            nonlocal last
            if event == "line":
                self.steps.add((name, last, frame.f_lineno))
                last = frame.f_lineno
            return follow

        return follow


def main() -> None:
    found, corpus = map(Path, sys.argv[1:])
    with scratch() as folder:
        target = (Reader if corpus.name == "parsers" else Script)(folder)
        kept: set[Step] = set()
        for path in sorted(corpus.iterdir()) + sorted(found.iterdir(), key=lambda path: path.stat().st_size):
            data, ways = path.read_bytes(), Ways()
            if path.parent == found and len(data) > LARGEST[corpus.name]:
                continue
            sys.settrace(ways)
            try:
                target(data)
            finally:
                sys.settrace(None)
            room = BUDGET[corpus.name] - sum(item.stat().st_size for item in corpus.iterdir())
            if path.parent == found and not ways.steps <= kept and len(data) <= room:
                (corpus / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
            kept |= ways.steps
    print(f"{len(list(corpus.iterdir()))} inputs take {len(kept)} steps")


if __name__ == "__main__":
    main()
