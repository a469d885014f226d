"""The server's side of a federation, whatever carries its messages: rounds, sums, and what survives a crash.

==============================  ============================================================================
`Federation`                    what a transport opens, lets calls into, and closes
`Call`                          one call of a party that was let in: join, skip, resume, upload, …
`Limits`                        what a server lets its sites use
`Events`                        is told what happens, to count it
`Relay`                         rounds in memory, where a framework carries the messages
`RoundRecord`, `UploadRecord`   what happened in a round, as in ``rounds.jsonl``
==============================  ============================================================================
"""

from .calls import Call
from .events import Events, NoEvents
from .federation import Federation
from .limits import Limits
from .members import MAX_CALLS
from .records import RoundRecord, UploadRecord
from .relay import Relay
from .turns import Connection

__all__ = [
    "MAX_CALLS",
    "Call",
    "Connection",
    "Events",
    "Federation",
    "Limits",
    "NoEvents",
    "Relay",
    "RoundRecord",
    "UploadRecord",
]
