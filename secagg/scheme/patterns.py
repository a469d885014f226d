"""Shell-style patterns over the names of tensors, many of both."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import translate
from functools import lru_cache

from ..errors import ConfigError, show
from .metric_names import METRICS

_MAGIC = re.compile(r"[*?[]")


def read_pattern(value: object, name: str) -> str:
    """Return a valid pattern; `name` says where it stands. Anything else raises `ConfigError`."""
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{name}: {show(value)} is not a pattern; use names such as 'encoder.*'")
    return value


def read_patterns(value: object, name: str) -> tuple[str, ...]:
    """Return a list of valid patterns; `name` says where it stands. Anything else raises `ConfigError`."""
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{name} is {show(value)}; give a list of patterns such as ['encoder.*']")
    return tuple(read_pattern(item, name) for item in value)


@lru_cache(maxsize=16)
def matches(patterns: tuple[str, ...], tensors: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
    """Return for each tensor which patterns match it.

    Parameters
    ----------
    patterns : tuple of str
        As of `fnmatch.fnmatchcase`.
    tensors : tuple of tuple of str
        All names of each tensor; a pattern that matches one of them matches the tensor.
    """
    by_start: dict[str, list[tuple[str, Callable[[str], object]]]] = {}
    for pattern in patterns:  # a name is held against those patterns alone that begin as it does
        magic = _MAGIC.search(pattern)
        start = pattern[: magic.start()] if magic else pattern
        by_start.setdefault(start, []).append(
            (pattern, re.compile(translate(pattern)).match if magic else start.__eq__)
        )
    lengths = sorted({len(start) for start in by_start})
    order = {pattern: index for index, pattern in enumerate(patterns)}
    result = []
    for names in tensors:
        found = {
            pattern
            for name in names
            for length in lengths
            if length <= len(name)
            for pattern, match in by_start.get(name[:length], ())
            if match(name)
        }
        result.append(tuple(sorted(found, key=order.__getitem__)))
    return tuple(result)


def unmatched(patterns: Sequence[str], found: Iterable[tuple[str, ...]]) -> str | None:
    """Return the first pattern that is in nothing of what `matches` has found; None if there is no such pattern.

    One of metrics may be: each run has its own, or none.
    """
    used = {pattern for item in found for pattern in item}
    return next((one for one in patterns if one not in used and not one.startswith(METRICS)), None)
