"""The roster on the disk: whom the open round waits for, for a server that starts again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from ..errors import StorageError
from .rounds import Attempt
from .run_folder import RunFolder

_Roster = tuple[Attempt, frozenset[str], tuple[str, ...]]

log = logging.getLogger(__name__)


class SavedRoster:
    """Writes down attempt, roster and who skips as they change. Safe for threads.

    Parameters
    ----------
    folder : RunFolder
        Where they lie.
    current : callable
        Returns attempt, sites, and those of them that skip the round, as they are now.
    """

    def __init__(self, folder: RunFolder, current: Callable[[], _Roster]) -> None:
        self._folder = folder
        self._current = current
        self._lock = threading.Lock()
        self._saved: _Roster | None = None

    def save(self) -> None:
        """Write down what is not on the disk yet; one thread does it for all that came before it.

        If that fails, the log says so: a server that starts again waits for sites that have joined without it once they
        join again, and to the round timeout for sites that skip the round.
        """
        with self._lock:
            current = self._current()
            if self._saved == current:
                return
            attempt, sites, skipped = current
            try:
                self._folder.save_roster(attempt.round, attempt.number, sites, skipped)
                self._saved = current
            except StorageError as error:
                log.warning("%s", error, extra={"event": "roster_not_stored", "error": type(error).__name__})
