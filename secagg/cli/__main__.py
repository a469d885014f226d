"""The command ``secagg`` as a process of its own, which ``python -m secagg.cli`` is, too."""

from __future__ import annotations

import atexit
import logging
import os
import sys
from contextlib import suppress
from typing import NoReturn

from . import main


def entry() -> NoReturn:
    """Run a command and end the process with its exit code, without the destructors of native libraries.

    HE libraries, PyTorch and gRPC have threads that outlive `main`, and static objects that C++ destroys at exit.
    Rarely, a command that had done all its work ended there, with "free(): corrupted unsorted chunks". What Python does
    at its end is done.
    """
    codes = [1]  # that of an exception that nobody has caught
    atexit.register(_leave, codes)  # as the first, it runs as the last
    try:
        codes[0] = main()
    except SystemExit as end:  # argparse's
        codes[0] = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    sys.exit(codes[0])


def _leave(codes: list[int]) -> None:
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # the reader has gone, or it is closed
            stream.flush()
    os._exit(codes[0])


if __name__ == "__main__":
    entry()
