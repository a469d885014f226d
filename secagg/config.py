"""The configuration that every site and the server of a federation share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ConfigError, show
from .params import Params
from .plugins import registered_backends

if TYPE_CHECKING:
    import yaml

#: Named choices of what is encrypted.
ENCRYPT_CHOICES = ("all", "conv", "first-middle-last")

#: The most contributions that one aggregate can list.
MAX_CLIENTS = 10_000


@dataclass(frozen=True)
class Encrypt:
    """What is encrypted: a named choice, or patterns over tensor names.

    Parameters
    ----------
    choice : str or None
        ``"all"``, ``"conv"`` (tensors of three or more dimensions) or ``"first-middle-last"`` (modules); None
        when patterns are given.
    include, exclude : tuple of str
        Shell-style patterns. A tensor is encrypted when it matches `include` (empty: everything) and does not
        match `exclude`.
    """

    choice: str | None = "all"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.choice is None:
            if not self.include and not self.exclude:
                raise ConfigError("encrypt needs patterns: {include: [...]}, {exclude: [...]} or both")
        elif self.choice not in ENCRYPT_CHOICES:
            raise ConfigError(
                f"encrypt is {show(self.choice)}; use {', '.join(ENCRYPT_CHOICES)} or "
                "{include: [patterns], exclude: [patterns]}"
            )

    @property
    def leaves_clear(self) -> bool:
        """Whether float tensors can be left clear."""
        return self.choice != "all"

    @classmethod
    def from_value(cls, value: object) -> Encrypt:
        """Read the value of the config key ``encrypt``."""
        if isinstance(value, str):
            return cls(value)
        if not isinstance(value, Mapping):
            raise ConfigError(
                f"encrypt is {show(value)}; use {', '.join(ENCRYPT_CHOICES)} or {{include: ..., exclude: ...}}"
            )
        _only(value, ("include", "exclude"), "encrypt")
        return cls(None, *(_patterns(value.get(key, []), f"encrypt.{key}") for key in ("include", "exclude")))

    def to_value(self) -> str | dict[str, list[str]]:
        """Return what `from_value` reads."""
        if self.choice is not None:
            return self.choice
        sides = {"include": list(self.include), "exclude": list(self.exclude)}
        return {key: patterns for key, patterns in sides.items() if patterns}


@dataclass(frozen=True)
class Aggregation:
    """How updates are added, and for how many the capacity is planned.

    Parameters
    ----------
    min_clients, max_clients : int
        Fewest and most contributions of an aggregate.
    max_abs : float or dict of str to float
        Largest absolute value of any element: one number, or patterns over tensor names to numbers, with
        ``default`` for the tensors that no pattern matches.
    max_weight : float
        Largest weight that any site may give.
    """

    min_clients: int = 2
    max_clients: int = 30
    max_abs: float | dict[str, float] = 8.0
    max_weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("min_clients", "max_clients"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 2 <= value <= MAX_CLIENTS:
                raise ConfigError(
                    f"aggregation.{name} is {show(value)}; use a whole number from 2 to {MAX_CLIENTS} "
                    "(the sum of one update is that update)"
                )
        if self.min_clients > self.max_clients:
            raise ConfigError(
                f"aggregation.min_clients {self.min_clients} is above aggregation.max_clients {self.max_clients}"
            )
        object.__setattr__(self, "max_weight", _positive(self.max_weight, "aggregation.max_weight"))
        if isinstance(self.max_abs, Mapping):
            if not self.max_abs:
                raise ConfigError("aggregation.max_abs is empty; give a number or {default: number, pattern: number}")
            bounds = {
                _pattern(key, "aggregation.max_abs"): _positive(value, f"aggregation.max_abs[{key!r}]")
                for key, value in self.max_abs.items()
            }
            object.__setattr__(self, "max_abs", bounds)
        else:
            object.__setattr__(self, "max_abs", _positive(self.max_abs, "aggregation.max_abs"))

    def bound(self, name: str) -> float:
        """Return ``max_abs`` of the tensor `name`.

        Raises
        ------
        ConfigError
            If no pattern matches and there is no ``default``, or two patterns with different numbers match.
        """
        if isinstance(self.max_abs, float):
            return self.max_abs
        matches = {key: value for key, value in self.max_abs.items() if key != "default" and fnmatchcase(name, key)}
        if len(set(matches.values())) > 1:
            raise ConfigError(
                f"aggregation.max_abs: tensor {name!r} matches {', '.join(matches)} with different numbers"
            )
        if matches:
            return next(iter(matches.values()))
        if "default" not in self.max_abs:
            raise ConfigError(f"aggregation.max_abs has no pattern for tensor {name!r}; add one, or a default")
        return self.max_abs["default"]

    def check_patterns(self, names: Iterable[str]) -> None:
        """Raise `ConfigError` if a pattern of ``max_abs`` matches none of `names`."""
        if isinstance(self.max_abs, float):
            return
        names = list(names)
        for pattern in self.max_abs:
            if pattern != "default" and not any(fnmatchcase(name, pattern) for name in names):
                raise ConfigError(f"aggregation.max_abs: pattern {pattern!r} matches no tensor")

    @property
    def bounds(self) -> tuple[float, ...]:
        """All numbers of ``max_abs``."""
        return (self.max_abs,) if isinstance(self.max_abs, float) else tuple(self.max_abs.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the ``aggregation`` block."""
        return {
            "min_clients": self.min_clients,
            "max_clients": self.max_clients,
            "max_abs": self.max_abs if isinstance(self.max_abs, float) else dict(self.max_abs),
            "max_weight": self.max_weight,
        }


@dataclass(frozen=True)
class Config:
    """A whole, validated configuration; build it with `from_dict` or `load`.

    Parameters
    ----------
    lib : str
        Id of the backend, ``he.lib``.
    params : Params
        Scheme parameters, ``he.config``.
    encrypt : Encrypt
        What is encrypted.
    aggregation : Aggregation
        How updates are added.
    """

    lib: str
    params: Params
    encrypt: Encrypt = field(default_factory=Encrypt)
    aggregation: Aggregation = field(default_factory=Aggregation)

    def __post_init__(self) -> None:
        known = registered_backends()
        if self.lib not in known:
            raise ConfigError(f"he.lib is {self.lib!r}; the registered backends are {', '.join(known) or 'none'}")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Config:
        """Validate a configuration.

        Parameters
        ----------
        data : mapping
            The keys ``he`` (``lib``, ``config``), ``encrypt`` and ``aggregation``; only ``he`` is required.

        Raises
        ------
        ConfigError
            Unknown or missing key, wrong type, unknown library, params that are unsafe or unsupported.
        """
        if not isinstance(data, Mapping):
            raise ConfigError(f"the configuration is {show(data)}; it must be a block of keys and values")
        _only(data, ("he", "encrypt", "aggregation"), "the configuration")
        he = _block(data, "he")
        _only(he, ("lib", "config"), "he")
        if "lib" not in he:
            raise ConfigError(f"he needs 'lib', one of {', '.join(registered_backends())}")
        aggregation = _block(data, "aggregation") if "aggregation" in data else {}
        _only(aggregation, tuple(Aggregation().to_dict()), "aggregation")
        return cls(
            lib=he["lib"] if isinstance(he["lib"], str) else show(he["lib"]),
            params=Params.from_dict(_block(he, "config", inside="he")),
            encrypt=Encrypt.from_value(data.get("encrypt", "all")),
            aggregation=Aggregation(**aggregation),
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Config:
        """Read a YAML (or JSON) file; see `from_dict`."""
        import yaml

        try:
            text = Path(path).read_text(encoding="utf-8")
            data = yaml.safe_load(text)
            _refuse_duplicate_keys(yaml.compose(text, Loader=yaml.SafeLoader), os.fspath(path))
        except OSError as error:
            raise ConfigError(f"cannot read the configuration {os.fspath(path)!r}: {error.strerror}") from error
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, no such date
            raise ConfigError(f"{os.fspath(path)!r} is not YAML: {error}") from error
        if not isinstance(data, Mapping):
            raise ConfigError(f"{os.fspath(path)!r} holds no configuration: it needs the keys he, encrypt, aggregation")
        return cls.from_dict(data)

    def to_dict(self) -> dict[str, Any]:
        """Return the dictionary that `from_dict` reads back to an equal configuration."""
        return {
            "he": {"lib": self.lib, "config": self.params.to_dict()},
            "encrypt": self.encrypt.to_value(),
            "aggregation": self.aggregation.to_dict(),
        }


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


def _only(block: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in block:
        if key not in known:
            raise ConfigError(f"{where} has an unknown key {key!r}; it knows {', '.join(known)}")


def _block(data: Mapping[str, Any], key: str, inside: str = "the configuration") -> Mapping[str, Any]:
    if key not in data:
        raise ConfigError(f"{inside} needs {key!r}")
    value = data[key]
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key} is {show(value)}; it must be a block of keys and values")
    return value


def _positive(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= sys.float_info.max:
        raise ConfigError(f"{name} is {show(value)}; use a number above 0")
    return float(value)


def _pattern(value: object, name: str) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{name}: {show(value)} is not a pattern; use names such as 'encoder.*'")
    return value


def _patterns(value: object, name: str) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{name} is {show(value)}; give a list of patterns such as ['encoder.*']")
    return tuple(_pattern(item, name) for item in value)
