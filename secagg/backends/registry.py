"""From ``he.lib`` to a backend class, through entry points."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, packages_distributions, version

from ..errors import BackendUnavailableError, ConfigError
from ..scheme.plugins import load_plugin, registered_backends
from .base import Backend


@dataclass(frozen=True)
class BackendInfo:
    """What `available_backends` says of one backend.

    Parameters
    ----------
    available : bool
        Whether the HE library could be imported.
    schemes : tuple of str
        Schemes that it can encrypt under.
    trust : str
        Who must trust whom.
    version : str or None
        Version of the library that does the cryptography.
    problem : str or None
        Why it is not available, and what to install.
    library : str or None
        Its distribution, as ``pip`` knows it.
    """

    available: bool
    schemes: tuple[str, ...]
    trust: str
    version: str | None
    problem: str | None = None
    library: str | None = None


def load_backend(lib: str) -> type[Backend]:
    """Return the class that ``he.lib: lib`` selects.

    Raises
    ------
    ConfigError
        If no backend of that id is registered, or what is registered is none.
    BackendUnavailableError
        If the plug-in's module cannot be imported.
    """
    backend = load_plugin(lib)
    if not (isinstance(backend, type) and issubclass(backend, Backend)):
        value = registered_backends()[lib].value
        raise ConfigError(f"the entry point {value} of backend {lib!r} is no secagg.backends.base.Backend")
    return backend


def available_backends() -> dict[str, BackendInfo]:
    """Return every registered backend by id, after trying to import its HE library."""
    return {lib: _inform(lib) for lib in registered_backends()}


def _inform(lib: str) -> BackendInfo:
    try:
        backend = load_backend(lib)
    except (BackendUnavailableError, ConfigError) as error:
        return BackendInfo(False, (), "unknown", None, str(error))
    try:
        backend.library()
    except BackendUnavailableError as error:
        return BackendInfo(False, backend.schemes, backend.trust, None, str(error))
    library, number = _distribution(backend.module)
    return BackendInfo(True, backend.schemes, backend.trust, number, library=library)


def _distribution(module: str) -> tuple[str | None, str | None]:
    for distribution in packages_distributions().get(module.partition(".")[0], ()):
        try:
            return distribution, version(distribution)
        except PackageNotFoundError:
            continue
    return None, None
