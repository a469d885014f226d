"""The log of a server: lines for people, or JSON for machines.

A line of JSON has the fields ``time`` (UTC), ``level``, ``event`` and ``message``, and where they are known ``site``,
``round`` and ``error`` (the name of a type in `secagg.errors`), ``traceback`` where something broke. Log calls name
what they know in ``extra``; whatever else they hand over there stays out of the log.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import TextIO

from ..errors import one_line

#: Formats of the log.
FORMATS = ("text", "json")

#: Of log calls that name no event: those of other libraries.
_NO_EVENT = "log"


def start_log(form: str, stream: TextIO | None = None) -> None:
    """Write what is logged, from now on, to `stream` (default: standard error).

    Parameters
    ----------
    form : str
        One of `FORMATS`.
    stream : file, optional
        A text file.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_json_formatter() if form == "json" else _TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


class _TextFormatter(logging.Formatter):
    """Date, time, level where it is not INFO, and the message: one line, whatever a peer has put into it."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        return f"{record.asctime} {level}{one_line(record.message)}"


def _json_formatter() -> logging.Formatter:
    from pythonjsonlogger.json import JsonFormatter

    class Formatter(JsonFormatter):
        def process_log_record(self, log_data: dict[str, object]) -> dict[str, object]:
            log_data["levelname"] = str(log_data["levelname"]).lower()
            log_data["event"] = log_data.get("event") or _NO_EVENT
            # Only named fields: what somebody passes in `extra` one day must not become public by that.
            return {new: log_data[name] for name, new in _JSON_FIELDS.items() if log_data.get(name) is not None}

    formatter = Formatter("%(asctime)s %(levelname)s %(message)s")
    formatter.converter = time.gmtime
    formatter.default_time_format, formatter.default_msec_format = "%Y-%m-%dT%H:%M:%S", "%s.%03dZ"
    return formatter


#: What python-json-logger calls what a line holds, and what the line calls it, in this order.
_JSON_FIELDS = {
    "asctime": "time",
    "levelname": "level",
    "event": "event",
    "message": "message",
    "site": "site",
    "round": "round",
    "error": "error",
    "exc_info": "traceback",
}
