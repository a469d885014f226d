"""Where a task comes from: a class in a module or a file, and the options that it is made with."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import ConfigError, SecAggError
from ..storage.yaml_file import read_scalar
from .task import CheckedTask, user_code


def read_options(texts: Iterable[str]) -> dict[str, Any]:
    """Return the options that ``NAME=VALUE`` stand for; values are YAML scalars.

    Raises
    ------
    ConfigError
        If one has another form, or a name is given twice.
    """
    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(f"the option {text!r} has another form than NAME=VALUE, such as lr=0.1")
        if name in options:
            raise ConfigError(f"the option {name} is given twice")
        options[name] = read_scalar(value)
    return options


def load_task(place: str, options: Mapping[str, Any]) -> CheckedTask:
    """Make a task.

    Parameters
    ----------
    place : str
        ``module:Class`` for a module on the path or in the working directory; ``file.py:Class`` for a file, which can
        import the modules beside it. Both folders come last on the path: nothing in them takes a library's place.
    options : mapping of str to object
        Keyword arguments of the class.

    Raises
    ------
    ConfigError
        If there is no such class, it takes other options, or makes what is no task.
    TaskError
        If its code raises something else than an error of secagg.
    """
    where, _, name = place.rpartition(":")
    path = Path(where)
    module = _from_file(place, path) if path.suffix == ".py" else _from_module(place, where)
    kind = getattr(module, name, None)
    if not callable(kind):
        raise ConfigError(
            f"the task {place!r} cannot be found: {getattr(module, '__file__', None) or where} has no class {name!r}"
        )
    signature = inspect.signature(kind)
    try:
        signature.bind(**options)
    except TypeError as error:
        raise ConfigError(f"the options do not fit the task {place}: {error}; it takes {_bare(signature)}") from error
    # A library that a task of secagg's own lacks is a matter of what was installed with secagg.
    missing = (ImportError,) if kind.__module__.startswith(f"{__name__.partition('.')[0]}.") else ()
    with user_code(f"the task {place}", (SecAggError, *missing)):
        return CheckedTask(place, kind(**options))


def _from_file(place: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"the task {place!r} cannot be found: there is no file {path.absolute()}")
    path, name = path.resolve(), path.stem
    _add_to_path(path.parent)
    found = importlib.util.find_spec(name) if name.isidentifier() else None
    if found is None or found.origin is None or Path(found.origin).resolve() != path:
        other = f", which is {found.origin} already" if found else ""
        raise ConfigError(f"the task {place!r} cannot be imported as module {name!r}{other}: rename the file")
    return _import(place, name)


def _from_module(place: str, name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(f"the task {place!r} cannot be found: write module:Class or file.py:Class")
    _add_to_path(Path.cwd())
    return _import(place, name)


def _add_to_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
        importlib.invalidate_caches()


def _import(place: str, name: str) -> ModuleType:
    with user_code(f"the module of the task {place}", (SecAggError,)):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not f"{name}.".startswith(f"{error.name}."):
                raise  # one that it imports itself
            raise ConfigError(
                f"the task {place!r} cannot be found: no module {error.name!r} is in {Path.cwd()}, nor installed"
            ) from error


def _bare(signature: inspect.Signature) -> inspect.Signature:
    """Return a signature without types, which are long, and quoted where annotations are postponed."""
    empty = inspect.Parameter.empty
    parameters = [parameter.replace(annotation=empty) for parameter in signature.parameters.values()]
    return signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty)
