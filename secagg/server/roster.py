"""The roster on the disk: whom the open stage waits for, for a server that starts again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from ..errors import StorageError
from .run_folder import RunFolder, StoredRoster

log = logging.getLogger(__name__)


class SavedRoster:
    """Writes down attempt, roster and who skips as they change. Safe for threads.

    Parameters
    ----------
    folder : RunFolder
        Where they lie.
    current : callable
        Returns the round and its roster as they are now.
    """

    def __init__(self, folder: RunFolder, current: Callable[[], tuple[int, StoredRoster]]) -> None:
        self._folder = folder
        self._current = current
        self._lock = threading.Lock()
        self._saved: tuple[int, StoredRoster] | None = None

    def save(self) -> None:
        """Write down what is not on the disk yet; one thread does it for all that came before it.

        If that fails, the log says so: a server that starts again waits for sites that have joined without it once they
        join again, and to the round timeout for sites that skip the round.
        """
        with self._lock:
            current = self._current()
            if self._saved == current:
                return
            try:
                self._folder.save_roster(*current)
                self._saved = current
            except StorageError as error:
                log.warning("%s", error, extra={"event": "roster_not_stored", "error": type(error).__name__})
