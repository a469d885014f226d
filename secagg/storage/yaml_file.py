"""YAML files, JSON among them, read strictly."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, show
from .files import Source, name_of, read_source

if TYPE_CHECKING:
    import yaml

#: PyYAML takes seconds for as much.
MAX_YAML_NBYTES = 1 << 20
#: Values that a document may have when its aliases are written out: without any, so many bytes do not hold more.
_MAX_VALUES = 1 << 20
#: A number to YAML 1.2 and to whoever types it, and text to PyYAML, which reads YAML 1.1.
_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?e[-+]?\d+", re.ASCII | re.IGNORECASE)


def read_yaml(source: Source) -> Any:
    """Return what a file, bytes or a binary stream holds.

    Raises
    ------
    ConfigError
        If it cannot be read, is no regular file or larger than 1 MiB, is not YAML, gives a
        key twice in one block, or has aliases that stand for too much.
    """
    import yaml

    name, blob = name_of(source), read_source(source, MAX_YAML_NBYTES, ConfigError, "the YAML file")
    try:
        loader = yaml.SafeLoader(blob.decode("utf-8"))
        node = loader.get_single_node()
        _count(node, name, {})
        return None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, no such date
        raise ConfigError(f"{name} is not YAML: {error}") from error


def read_scalar(text: str) -> Any:
    """Return what a scalar stands for: a number, text, true, false, null or a date.

    Raises
    ------
    ConfigError
        If it is a list, a mapping or no YAML.
    """
    import yaml

    if _EXPONENT.fullmatch(text.strip()):
        return float(text)
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = getattr(error, "problem", None) or error
        raise ConfigError(f"{show(text)} is not YAML ({reason}): put text into quotes that YAML sees") from error
    if isinstance(value, (list, dict, set)):
        raise ConfigError(f"{show(text)} is a {type(value).__name__}; give one value")
    return value


def to_yaml(data: dict[str, Any], *, flow: bool) -> str:
    """Return a block of keys in their order; with `flow`, what holds plain values alone is written on one line."""
    import yaml

    style = None if flow else False
    text: str = yaml.safe_dump(data, sort_keys=False, default_flow_style=style, allow_unicode=True, width=120)
    return text


def _count(node: yaml.Node | None, name: str, counts: dict[int, int]) -> int:
    """Return how many values a document has when its aliases are written out: nine lines can stand for billions.

    Parameters
    ----------
    node : yaml.Node or None
        The document, or a part of it.
    name : str
        For messages.
    counts : dict
        Of the nodes that were looked at, by their ids; 0 of those that are being looked at.

    Raises
    ------
    ConfigError
        If there are too many, one holds itself, or a block gives a key twice, which PyYAML lets pass.
    """
    if node is None or not isinstance(node.value, list):
        return 1
    if id(node) in counts:
        if not counts[id(node)]:
            raise ConfigError(f"{name} has an alias that stands for a block around it; write out what it shall hold")
        return counts[id(node)]
    counts[id(node)] = 0
    pairs = [item for item in node.value if isinstance(item, tuple)]
    keys: set[str] = set()
    for key in (key.value for key, _ in pairs if isinstance(key.value, str)):
        if key in keys:
            raise ConfigError(f"{name} gives the key {key!r} twice in one block; keep one")
        keys.add(key)
    children = [child for pair in pairs for child in pair] if pairs else node.value
    count = 1 + sum(_count(child, name, counts) for child in children)
    if count > _MAX_VALUES:
        raise ConfigError(f"{name} has aliases that stand for more than {_MAX_VALUES:,} values; write fewer")
    counts[id(node)] = count
    return count
