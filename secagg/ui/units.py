"""Sizes, times and numbers of things as people write and read them."""

from __future__ import annotations

import argparse
import re

# As systemd and containers have it: K, M, G, T count in 1024, and so do KiB …; kB, MB, GB, TB in 1000.
_UNITS = {
    unit: factor
    for power, letter in enumerate("KMGT", 1)
    for unit, factor in ((letter, 1024**power), (f"{letter}IB", 1024**power), (f"{letter}B", 1000**power))
} | {"": 1, "B": 1}
_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,6})?) ?([a-z]{0,3})", re.ASCII | re.IGNORECASE)


def parse_size(text: str) -> int:
    """Return the bytes of a size such as ``20G``, ``20GiB``, ``500 MB`` or ``1.5T``; `argparse` reports the error."""
    match = _SIZE.fullmatch(text.strip())
    factor = _UNITS.get(match[2].upper()) if match else None
    if match is None or factor is None:
        raise argparse.ArgumentTypeError(f"{text!r}: write a size as 20G (= 20GiB), 20GB or 500M")
    return int(float(match[1]) * factor)


def show_count(number: int, what: str) -> str:
    """Return so many things: 1 round, 2 rounds."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def show_seconds(seconds: float) -> str:
    """Return a duration in its two largest units: 59 s, 12 min 5 s, 3 h 20 min, 2 d 4 h."""
    whole = round(seconds)
    parts = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s")]
    while len(parts) > 1 and not parts[0][0]:
        del parts[0]
    return " ".join(f"{count} {unit}" for count, unit in parts[:2] if count) or "0 s"
