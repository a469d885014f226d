"""What a server's log says of a kit that expires: in time, and each day, as long as nobody has renewed it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from ..errors import show_time
from ..trust.project import EXPIRES_SOON_SECONDS
from ..ui.units import show_seconds

_DAY_SECONDS = 86_400.0

_REMEDY = "`secagg rotate` at the provisioner renews it"

log = logging.getLogger(__name__)


def wait_and_tell(wait: Callable[[float], str | None], ends: Mapping[str, float], clock: Callable[[], float]) -> str:
    """Wait for a signal; log at once, and then daily, what expires soon or has expired.

    Parameters
    ----------
    wait : callable
        Waits so many seconds for a signal; returns its name, or None if there was none.
    ends : mapping of str to float
        When what expires: seconds since 1970, UTC.
    clock : callable
        Returns seconds since 1970, UTC.

    Returns
    -------
    str
        Name of the signal.
    """
    while True:
        name = wait(tell(ends, clock()))
        if name is not None:
            return name


def tell(ends: Mapping[str, float], now: float) -> float:
    """Log what has expired, or soon will; return after how many seconds to look again, a day at most."""
    for what, end in ends.items():
        if end <= now:
            log.error(
                "the %s expired on %s, sites are refused: %s",
                what,
                show_time(end),
                _REMEDY,
                extra={"event": "expired"},
            )
        elif end - now < EXPIRES_SOON_SECONDS:
            log.warning(
                "the %s expires in %s, on %s: %s",
                what,
                show_seconds(end - now),
                show_time(end),
                _REMEDY,
                extra={"event": "expires_soon"},
            )
    to_come = (end - now for end in ends.values() if end > now)
    return max(1.0, min((_DAY_SECONDS, *to_come)))
