"""The server's side of a federation, whatever carries its messages: rounds, sums, and what survives a crash.

============================  ==============================================================
`Federation`                  adds the updates of each round, stores aggregates and models
`Limits`                      what a server lets its sites use
`RoundRecord`, `UploadRecord`  what happened in a round, as in ``rounds.jsonl``
============================  ==============================================================
"""

from .federation import Federation
from .limits import Limits
from .records import RoundRecord, UploadRecord

__all__ = ["Federation", "Limits", "RoundRecord", "UploadRecord"]
