"""``python -m secagg.demo.child PARENT MODULE …`` is ``python -m MODULE …`` that ends when its parent does.

Who is killed by SIGKILL, or by the kernel for memory, cannot end its children; the kernel ends them by SIGTERM.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


def main() -> None:
    """Run the module."""
    parent, module = int(sys.argv[1]), sys.argv[2]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it has ended before it was asked for the signal
        sys.exit(128 + signal.SIGTERM)
    sys.argv[1:3] = []
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
