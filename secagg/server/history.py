"""What happened in the open stage so far, and its record when it ends: in the log, in ``rounds.jsonl``, in metrics."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from .events import Events
from .records import RoundRecord, UploadRecord
from .rounds import Attempt, Snapshot

log = logging.getLogger(__name__)


class History:
    """Writes the records of a server's rounds.

    Parameters
    ----------
    path : Path
        Of ``rounds.jsonl``.
    events : Events
        Is told of every end.
    """

    def __init__(self, path: Path, events: Events) -> None:
        self._path = path
        self._events = events
        self._uploads: dict[str, UploadRecord] = {}
        self._began = time.monotonic()
        self._attempt: Attempt | None = None

    def opened(self, state: Snapshot) -> None:
        """Note how an attempt begins; nothing if it is known already."""
        if state.attempt == self._attempt:
            return
        self._attempt = state.attempt
        log.info(
            "round %d, attempt %d is open: %d %ss are in the sum; waiting for %s",
            state.attempt.round,
            state.attempt.number,
            len(state.added),
            state.attempt.stage,
            ", ".join(state.waiting_for) or "nobody",
            extra={"event": "round_opened", "round": state.attempt.round},
        )

    def added(self, site: str, nbytes: int, receive_seconds: float = 0.0, add_seconds: float = 0.0) -> None:
        """Note an update or calibration that is in the sum; times are 0 if an earlier server received it."""
        self._uploads[site] = UploadRecord(site, nbytes, receive_seconds, add_seconds)

    def lost(self, site: str) -> None:
        """Note that what a site gave is in the sum no more."""
        self._uploads.pop(site, None)

    def completed(self, state: Snapshot, finish_seconds: float, nbytes: int) -> None:
        """Record the end of a stage, whose `state` is given, with a sum of `nbytes`."""
        outcome = "completed" if state.attempt.stage == "update" else "calibrated"
        self._record(outcome, state, finish_seconds, nbytes, "")
        self._uploads = {}

    def failed(self, state: Snapshot, reason: str, missing: Iterable[str] = ()) -> None:
        """Record the end of an attempt, whose `state` is given, with whom it lacked; what was added stays."""
        self._record("failed", state, 0.0, 0, reason, missing)

    def voided(self, state: Snapshot, revoked: Sequence[str]) -> None:
        """Record the end of an attempt, whose `state` is given, which is void since sites have been revoked."""
        have = "has" if len(revoked) == 1 else "have"
        self._record("voided", state, 0.0, 0, f"{', '.join(revoked)} {have} been revoked")
        self._uploads = {}

    def _record(
        self,
        outcome: str,
        state: Snapshot,
        finish_seconds: float,
        nbytes: int,
        reason: str,
        missing: Iterable[str] = (),
    ) -> None:
        now = time.monotonic()
        record = RoundRecord(
            time=datetime.now(UTC).isoformat(timespec="milliseconds"),
            round=state.attempt.round,
            attempt=state.attempt.number,
            outcome=outcome,
            uploads=tuple(self._uploads.values()),
            missing=tuple(sorted({*state.waiting_for, *missing})),
            seconds=now - self._began,
            finish_seconds=finish_seconds,
            nbytes=nbytes,
            reason=reason,
            skipped=state.skipped,
        )
        self._began = now
        level = logging.INFO if outcome in ("completed", "calibrated") else logging.WARNING
        log.log(level, "%s", record.line(), extra={"event": f"round_{outcome}", "round": record.round})
        self._events.round_ended(outcome, record.seconds)
        try:
            record.append_to(self._path)
        except OSError as error:
            log.warning("cannot write %s: %s", self._path.name, error.strerror, extra={"event": "record_not_stored"})
