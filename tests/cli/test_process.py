"""A command as a process of its own: its exit code, what Python does at its end, and what native code does not."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import atexit, ctypes, sys
from secagg.cli import __main__ as process
libc = ctypes.CDLL(None)
libc.__cxa_atexit(libc.abort, None, None)  # as a static object whose destructor finds the heap in disorder


def main():
    atexit.register(print, "what Python does at its end")
    print("its work", end=" ")
    {}


process.main = main
process.entry()
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("return 0", 0),
        ("return 130", 130),
        ("sys.exit()", 0),
        ("sys.exit(2)", 2),
        ("sys.exit('text')", 1),
        ("raise ValueError('unforeseen')", 1),
    ],
)
def test_how_a_process_ends(end: str, code: int) -> None:
    command = [sys.executable, "-c", PROGRAM.format(end)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == code, result.stderr
    assert result.stdout == "its work what Python does at its end\n"
    assert ("unforeseen" in result.stderr) == ("unforeseen" in end)
    assert ("text" in result.stderr) == ("'text'" in end)
