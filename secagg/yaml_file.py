"""YAML files, JSON among them, read strictly."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ConfigError

if TYPE_CHECKING:
    import yaml


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Return what a file holds.

    Raises
    ------
    ConfigError
        If it cannot be read, is not YAML, or gives a key twice in one block.
    """
    import yaml

    name = os.fspath(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
        data = yaml.safe_load(text)
        _refuse_duplicate_keys(yaml.compose(text, Loader=yaml.SafeLoader), name)
    except OSError as error:
        raise ConfigError(f"cannot read {name!r}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, no such date
        raise ConfigError(f"{name!r} is not YAML: {error}") from error
    return data


def _refuse_duplicate_keys(node: yaml.Node | None, path: str) -> None:
    """Raise `ConfigError` if a block of a YAML document gives a key twice, which PyYAML lets pass."""
    if node is None or not isinstance(node.value, list):
        return
    pairs = [item for item in node.value if isinstance(item, tuple)]
    keys = [key.value for key, _ in pairs if isinstance(key.value, str)]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(f"{path!r} gives the key {key!r} twice in one block; keep one")
    for child in (value for _, value in pairs) if pairs else node.value:
        _refuse_duplicate_keys(child, path)
