"""Text of the other side, before it is shown to people."""

from __future__ import annotations


def one_line(text: str) -> str:
    """Return text whose control characters, which could steer a terminal or forge lines of a log, are escaped."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
