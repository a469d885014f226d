"""Which backends are registered, and their classes. No HE library is imported here: plug-ins import theirs late."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from ..errors import BackendUnavailableError, ConfigError

GROUP = "secagg.backends"


@cache
def registered_backends() -> Mapping[str, EntryPoint]:
    """Return the entry points of group ``secagg.backends`` by id, sorted; read once, as that takes milliseconds."""
    return {point.name: point for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)}


def check_registered(lib: object) -> None:
    """Raise `ConfigError` unless a backend of the id `lib` is registered."""
    known = registered_backends()
    if lib not in known:
        raise ConfigError(f"he.lib is {lib!r}; the registered backends are {', '.join(known) or 'none'}")


def load_plugin(lib: str) -> Any:
    """Return what the entry point of `lib` names.

    Raises
    ------
    ConfigError
        If no backend of that id is registered.
    BackendUnavailableError
        If the plug-in's module cannot be imported.
    """
    check_registered(lib)
    point = registered_backends()[lib]
    try:
        return point.load()
    except Exception as error:  # a plug-in can fail in any way, and must not take the others down
        raise BackendUnavailableError(f"backend {lib!r} cannot be loaded from {point.value}: {error}") from error
