"""Integrations of secagg with the programs around it. Each imports only the public face of the SDK."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from importlib import import_module
from typing import Any


def exported(package: str, modules: Mapping[str, str], name: str, where: str, libraries: Collection[str]) -> Any:
    """Return what an integration exports, whose libraries load when one of its names is first used.

    Parameters
    ----------
    package : str
        The integration's; the last part of its name is the extra that installs the libraries.
    modules : mapping of str to str
        Its modules by the names that they export.
    name : str
        The one that is asked for.
    where : str
        What the integration is for, as ``"in Flower"``.
    libraries : collection of str
        Top-level packages of the libraries.

    Raises
    ------
    AttributeError
        If it exports no such name.
    ImportError
        If a library is not installed; the message names the extra.
    """
    if name not in modules:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f".{modules[name]}", package), name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in libraries:
            extra = package.rpartition(".")[2]
            raise ImportError(f"secagg {where} needs {missing}: install secagg[{extra}]") from error
        raise
