"""Text for any terminal: what its encoding lacks is shown in plain characters, and ends no command."""

from __future__ import annotations

import codecs
import io
import sys

#: Signs of our own texts, and what stands for them where only ASCII, or Latin-1, can be shown.
_PLAIN = {"×": "x", "–": "-", "−": "-", "…": "...", "▸": ">", "≠": "!=", "·": "*", "µ": "u"}

_HANDLER = "secagg.plain"


def accept_any_text() -> None:
    r"""Make standard output and error take all text, whatever encoding locale and ``PYTHONIOENCODING`` give them.

    Signs that the encoding lacks are replaced, other characters (of tensors' and files' names) are escaped as Python
    would write them: ``é`` becomes ``\xe9``. Streams that somebody has put in their place are left as they are.
    """
    codecs.register_error(_HANDLER, _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    text = "".join(_PLAIN.get(one) or one.encode("ascii", "backslashreplace").decode() for one in characters)
    return text, error.end
