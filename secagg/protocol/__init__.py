"""What both sides of a federation say to each other, whatever carries it.

=====================================  =====================================================================
`JoinReply`, `UploadReply` …           the messages
`Handout`                              what a server hands to a site where a framework carries the messages
`Chunk`                                a piece of an update, aggregate or model on its way
`BusyError`, `BrokenOffError`          a call that may come again; a call whose other side has gone
`Refusal`, `shown`                     a typed error on its way; text of the other side, fit to be shown
`parse_address`, `is_loopback`         ``host:port``
`Progress`                             is called with the bytes done and in all
`check_handshake`                      says why a TLS connection fails
=====================================  =====================================================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .address import is_loopback, parse_address
from .chunks import Progress
from .handout import Handout
from .messages import (
    BrokenOffError,
    BusyError,
    Chunk,
    DepositReply,
    DownloadRequest,
    JoinReply,
    PartTarget,
    ServerStatus,
    SkipRequest,
    UploadReply,
)
from .refusals import Refusal, shown

if TYPE_CHECKING:
    from .handshake import check_handshake

__all__ = [
    "BrokenOffError",
    "BusyError",
    "Chunk",
    "DepositReply",
    "DownloadRequest",
    "Handout",
    "JoinReply",
    "PartTarget",
    "Progress",
    "Refusal",
    "ServerStatus",
    "SkipRequest",
    "UploadReply",
    "check_handshake",
    "is_loopback",
    "parse_address",
    "shown",
]


def __getattr__(name: str) -> Any:
    # What reads certificates loads when it is first used.
    if name != "check_handshake":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .handshake import check_handshake

    return check_handshake
