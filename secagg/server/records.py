"""What happened in a round: sizes and times, for the log and for ``rounds.jsonl`` in the run folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import show_size


@dataclass(frozen=True)
class UploadRecord:
    """One update or calibration that was added.

    Parameters
    ----------
    site : str
        Who sent it.
    nbytes : int
        Its size in bytes.
    receive_seconds : float
        From its head to its last frame.
    add_seconds : float
        To verify it and add it.
    """

    site: str
    nbytes: int
    receive_seconds: float
    add_seconds: float


@dataclass(frozen=True)
class RoundRecord:
    """One attempt of a round, or of its calibration.

    Parameters
    ----------
    time : str
        When it ended: date and time in UTC, as ISO 8601 has it.
    round, attempt : int
        Which one; attempts count from 1, those of a calibration by themselves.
    outcome : str
        ``"completed"``, ``"calibrated"`` if that was a calibration, ``"failed"``, or ``"voided"`` by a manifest that
        revokes a site: what was added is dropped.
    uploads : tuple of UploadRecord
        What was added, in the order of addition.
    missing : tuple of str
        Sites that the round waited for to its end. Of an attempt that had too few: all whose update it lacked, those
        that skipped it and those of the project that never joined it, too.
    seconds : float
        From the opening of the attempt to its end.
    finish_seconds : float
        To finish the sum and store it.
    nbytes : int
        Size of the aggregate or the scales in bytes; 0 if there are none.
    reason : str
        Why it failed or is void; empty if it did not.
    skipped : tuple of str
        Sites that had no update to give.
    """

    time: str
    round: int
    attempt: int
    outcome: str
    uploads: tuple[UploadRecord, ...]
    missing: tuple[str, ...]
    seconds: float
    finish_seconds: float = 0.0
    nbytes: int = 0
    reason: str = ""
    skipped: tuple[str, ...] = ()

    def line(self) -> str:
        """Return the record as one line for people."""
        missing = f"; skipped: {', '.join(self.skipped)}" if self.skipped else ""
        missing += f"; missing: {', '.join(self.missing)}" if self.missing else ""
        if self.reason:
            added = ", ".join(upload.site for upload in self.uploads) or "none"
            return f"round {self.round} {self.outcome}, {self.reason}; added: {added}{missing}"
        nbytes = show_size(sum(upload.nbytes for upload in self.uploads))
        receive = sum(upload.receive_seconds for upload in self.uploads)
        add = sum(upload.add_seconds for upload in self.uploads)
        sites = ", ".join(upload.site for upload in self.uploads)
        text = f"round {self.round} {self.outcome} after {self.seconds:.1f} s: {sites}; {nbytes}"
        text += f" received in {receive:.2f} s, added in {add:.2f} s, finished in {self.finish_seconds:.2f} s"
        return text + missing

    def append_to(self, path: Path) -> None:
        """Append the record to `path` as one line of JSON with the names of the fields."""
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(self)) + "\n")
