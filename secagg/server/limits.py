"""What a server lets its sites use: uploads at a time, seconds, bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from ..errors import ConfigError, show


@dataclass(frozen=True)
class Limits:
    """Bounds of a server, each of which a federation can raise.

    Parameters
    ----------
    uploads_in_flight : int
        Uploads that are received at a time. Others wait for their turn.
    slot_seconds : float
        How long an upload waits for its turn before it is sent away, to come again.
    idle_seconds : float
        A stream without a frame, 1 MiB at most, for so long is cancelled; the site resumes it. No link may be slower.
    upload_seconds : float
        Longest time of one stream; then it is cancelled, and the site resumes it.
    disk_quota : int
        Bytes that the run folder may take: what lies there, what uploads under way have announced, and the aggregate
        of the open round.
    max_upload_nbytes : int
        Largest update while the layout is not known, and largest model before that. Once the layout is known,
        the size of an update follows from it.

    Raises
    ------
    ConfigError
        If a number is not positive and finite, or a count is no whole number.
    """

    uploads_in_flight: int = 16
    slot_seconds: float = 60.0
    idle_seconds: float = 60.0
    upload_seconds: float = 6 * 3600.0
    disk_quota: int = 64 << 30
    max_upload_nbytes: int = 4 << 30

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            kinds = (int, float) if field.name.endswith("_seconds") else (int,)
            if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < math.inf:
                what = "a number" if float in kinds else "a whole number"
                raise ConfigError(f"limits.{field.name} is {show(value)}; use {what} above 0")
