"""Runs a `secagg` command that is killed at a chosen call to the file system, for tests.

    python crashing.py '{"folder": …}' serve KIT …

The first argument is a JSON object. Counted are the calls that change what is in ``folder``, in any thread: the
process kills itself at the one of number ``call``, from 1, ``how``: "before" it, "after" it, or with "half" of a write
done. Without ``call`` it lives, and leaves the number of calls in the file ``count`` when it ends. With ``shadow``, an
empty folder, it notes what lasts if the power fails with the kill. SIGUSR1 kills it at once. With ``"fsync": false``
nothing is synchronised.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from power import Recorder

BY_PATH = ("open", "mkdir", "rename", "replace", "rmdir", "unlink")
BY_HANDLE = ("fsync", "ftruncate", "pwrite")


class Crash:
    """Stands before the functions of `os`."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._folder = options["folder"]
        self._call, self._how = options.get("call"), options.get("how", "before")
        self._count, self._calls = options.get("count"), 0
        self._fsync = options.get("fsync", True)
        # One call at a time: what is counted, done and noted is one step, and nothing happens after the last.
        self._lock = threading.RLock()
        shadow = options.get("shadow")
        self._recorder = Recorder(Path(self._folder), Path(shadow)) if shadow else None

    def install(self) -> None:
        for name in (*BY_PATH, *BY_HANDLE):
            setattr(os, name, self._wrapped(name, getattr(os, name)))
        signal.signal(signal.SIGUSR1, lambda number, frame: self._die())
        if self._count:
            atexit.register(lambda: Path(self._count).write_text(str(self._calls)))

    def _wrapped(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            with self._lock:
                if not self._concerns(name, arguments, options):
                    return call(*arguments, **options)
                if name == "fsync" and not self._fsync:
                    return None
                self._calls += 1
                now = self._calls == self._call
                if now and self._how == "half" and name == "pwrite":
                    handle, data, offset = arguments
                    call(handle, data[: len(data) // 2], offset)
                if now and self._how != "after":
                    self._die()
                try:
                    result = call(*arguments, **options)
                    if name == "fsync" and self._recorder:
                        self._recorder.synchronised(arguments[0])
                    return result
                finally:  # a call that fails is one, too
                    if now:
                        self._die()

        return wrapper

    def _concerns(self, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> bool:
        if name in BY_HANDLE:
            path = os.readlink(f"/proc/self/fd/{arguments[0]}")
        else:
            path = os.fspath(arguments[0])
            if options.get("dir_fd") is not None:
                path = os.path.join(os.readlink(f"/proc/self/fd/{options['dir_fd']}"), path)
            if name == "open" and not arguments[1] & os.O_CREAT:
                return False  # it changes nothing
        return f"{path}/".startswith(f"{self._folder}/")

    def _die(self) -> None:
        with self._lock:
            if self._recorder:
                self._recorder.save()
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)


if __name__ == "__main__":
    Crash(json.loads(sys.argv[1])).install()
    from secagg.cli import main  # after it: nobody holds the functions of `os` themselves

    sys.exit(main(sys.argv[2:]))
