"""One role of one peer in a process of its own: ``python -m secagg.bench.peers.worker PEER ROLE JOB``.

JOB is a file of `Job`. For each line on stdin, a list of JSON, the name of a measurement and a phase, it answers with a
line of JSON on stdout, first of all with the versions of its libraries. What cannot run says why in its first answer.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TextIO

from ...errors import BackendUnavailableError
from .job import Job
from .peers import PEERS
from .roles import Measured


def main() -> None:
    """Work until stdin ends."""
    name, role, path = sys.argv[1:]
    answers = _own_stdout()

    def answer(data: object) -> None:
        print(json.dumps(data), file=answers, flush=True)

    peer, job = PEERS[name], Job.load(Path(path))
    try:
        work = getattr(peer.load(), role)(job)
        versions = {library: version(library) for library in peer.libraries}
    except (ImportError, PackageNotFoundError, BackendUnavailableError) as error:
        answer({"problem": f"needs {' and '.join(peer.libraries)}: {error}"})
        return
    if role != "Server":
        job.states  # noqa: B018  # drawn before memory is measured
    measured = Measured(work, job)
    answer({"versions": versions})
    for line in sys.stdin:
        what, phase = json.loads(line)
        answer(getattr(measured, what)(phase))


def _own_stdout() -> TextIO:
    """Keep stdout for answers: what libraries print goes to stderr."""
    own = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return own


if __name__ == "__main__":
    main()
