"""Child processes of a command: none outlives it."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from secagg.demo.children import Children


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_between_start_and_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Interrupted(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)
            os.kill(os.getpid(), number)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt), Children() as children:
        children.start("sleeper", "timeit", ["-n", "1", "import time; time.sleep(600)"], tmp_path / "log")
    assert started[0].poll() is not None


def test_who_is_killed_may_be_started_again(tmp_path: Path) -> None:
    with Children() as children:
        children.start("sleeper", "timeit", ["-n", "1", "import time; time.sleep(600)"], tmp_path / "log")
        children.kill("sleeper")
        assert not children.running({"sleeper"})
        children.start("sleeper", "timeit", ["-n", "1", "pass"], tmp_path / "again")
        while children.running({"sleeper"}):
            pass
    assert (tmp_path / "log").read_text(encoding="utf-8") == ""
    assert "1 loop" in (tmp_path / "again").read_text(encoding="utf-8")
