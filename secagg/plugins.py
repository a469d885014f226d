"""Which backends are registered. Reads entry points only: no HE library is imported here."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

GROUP = "secagg.backends"


def registered_backends() -> dict[str, EntryPoint]:
    """Return the entry points of group ``secagg.backends`` by id, sorted."""
    return {point.name: point for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)}
