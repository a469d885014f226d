"""What the sites of a federation agree on of their task, such as patch and spacing: a block of the signed manifest."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError, show

#: Largest block, as JSON. All of a manifest has 4 MiB, and each site keeps it.
MAX_TASK_NBYTES = 16 << 10

#: Largest magnitude of a whole number: what JSON's readers have in common.
_LARGEST = 1 << 53

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)


def check_task(block: object) -> dict[str, Any]:
    """Return a copy of the block: names to text, numbers, true or false, or lists of these; the names are sorted.

    Raises
    ------
    ConfigError
        If it is something else, or takes more than 16 KiB as JSON.
    """
    if not isinstance(block, Mapping) or not block:
        raise ConfigError(f"task is {show(block)}; write a block of names and values, or leave it out")
    for name in block:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError(
                f"task has the name {show(name)}; write a letter, then letters, digits or '_', 64 at most"
            )
    checked = {name: _value(name, block[name]) for name in sorted(block)}
    nbytes = len(json.dumps(checked))
    if nbytes > MAX_TASK_NBYTES:
        raise ConfigError(f"task takes {nbytes:,} bytes, a manifest takes {MAX_TASK_NBYTES:,}: put less into it")
    return checked


def _value(name: str, value: object) -> Any:
    if isinstance(value, (list, tuple)):
        return [_scalar(name, item) for item in value]
    return _scalar(name, value)


def _scalar(name: str, value: object) -> Any:
    if isinstance(value, (str, bool)):
        return value
    if isinstance(value, int) and abs(value) <= _LARGEST:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise ConfigError(f"task: {name} holds {show(value)}; write text, a number, true or false, or a list of these")
