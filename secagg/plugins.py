"""Which backends are registered. Reads entry points only: no HE library is imported here."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points

GROUP = "secagg.backends"


@cache
def registered_backends() -> Mapping[str, EntryPoint]:
    """Return the entry points of group ``secagg.backends`` by id, sorted; read once, as that takes milliseconds."""
    return {point.name: point for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)}
