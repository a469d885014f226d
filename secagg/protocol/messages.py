"""How a server stands, at one moment: for ``Status``, for metrics, and for people."""

from __future__ import annotations

from dataclasses import dataclass

#: Longest timeout, four months: clocks and gRPC's deadlines do not take every float.
MAX_TIMEOUT_SECONDS = 1e7

#: How many completed rounds are remembered, and how many aggregates are kept.
KEPT_ROUNDS = 2

#: Characters of `ServerStatus.trouble`.
MAX_TROUBLE_LENGTH = 500


class BusyError(Exception):
    """There is no turn for this call now; it may come again."""


@dataclass(frozen=True)
class ServerStatus:
    """How the open round and the server's resources stand.

    Parameters
    ----------
    round, attempt : int
        The open round; attempts count from 1.
    state : str
        ``"idle"`` while the clock stands still, until a site joins; else ``"open"``.
    added, waiting_for : tuple of str
        Sites in the sum; sites of the roster not yet in it. Both sorted by name.
    seconds_left : float or None
        Until the round timeout; None when idle.
    uploads_in_flight : int
        Uploads that are being received.
    disk_used, disk_quota : int
        Bytes that the run folder takes, with what uploads under way have announced; bytes that it may take.
    epoch : int
        Of the server key.
    models, aggregates : tuple of int
        Rounds whose models and aggregates can be downloaded.
    base : bytes or None
        Digest of the global model that updates of the open round must begin from; None if it is not known.
    project_serial : int
        Of the project manifest; 0 if there is none.
    disk_free : int or None
        Bytes that the file system of the run folder has left; None if a server of another release does not tell.
    trouble : str
        Why the aggregate of the open round could not be stored at the last attempt, in one line; empty if nothing is
        wrong, or no more.
    """

    round: int
    attempt: int
    state: str
    added: tuple[str, ...]
    waiting_for: tuple[str, ...]
    seconds_left: float | None
    uploads_in_flight: int
    disk_used: int
    disk_quota: int
    epoch: int
    models: tuple[int, ...]
    aggregates: tuple[int, ...]
    base: bytes | None = None
    project_serial: int = 0
    disk_free: int | None = None
    trouble: str = ""
