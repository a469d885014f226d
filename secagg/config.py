"""The configuration that every site and the server of a federation share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import BackendUnavailableError, ConfigError, show
from .scheme.aggregation import Aggregation
from .scheme.codec import check_precision
from .scheme.metric_names import check_metrics
from .scheme.params import Params
from .scheme.patterns import read_patterns
from .scheme.plugins import check_registered, registered_backends
from .scheme.presets import is_exact, plan_params, preset
from .storage.files import Source, name_of
from .storage.yaml_file import read_yaml

#: Named choices of what is encrypted.
ENCRYPT_CHOICES = ("all", "conv", "first-middle-last")

#: The keys of a configuration.
CONFIG_KEYS = ("he", "encrypt", "stay", "nonnegative", "metrics", "aggregation")

#: Tensors that are never negative in any network or optimiser that works: variances and second moments.
NONNEGATIVE = ("*running_var", "*exp_avg_sq", "*square_avg")


@dataclass(frozen=True)
class Encrypt:
    """What is encrypted: a named choice, or patterns over tensor names.

    Parameters
    ----------
    choice : str or None
        ``"all"``; ``"conv"``: tensors of three or more dimensions whose last name part is ``weight``;
        ``"first-middle-last"``: those of the first, middle and last of the modules that have a ``weight`` of two or
        more dimensions; None when patterns are given.
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
        return cls(None, *(read_patterns(value.get(key, []), f"encrypt.{key}") for key in ("include", "exclude")))

    def to_value(self) -> str | dict[str, list[str]]:
        """Return what `from_value` reads."""
        if self.choice is not None:
            return self.choice
        sides = {"include": list(self.include), "exclude": list(self.exclude)}
        return {key: patterns for key, patterns in sides.items() if patterns}


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
    stay : tuple of str
        Patterns over names: these tensors stay at each site, whatever they are.
    nonnegative : tuple of str
        Patterns over names, beside those of `NONNEGATIVE`: the global model is floored at 0 there.
    metrics : tuple of str
        Names of numbers that sites measure of each global model, and average under encryption. By the first one, larger
        being better, the best model is chosen.
    """

    lib: str
    params: Params
    encrypt: Encrypt = field(default_factory=Encrypt)
    aggregation: Aggregation = field(default_factory=Aggregation)
    stay: tuple[str, ...] = ()
    nonnegative: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_registered(self.lib)
        check_precision(self.params, self.aggregation)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Config:
        """Validate a configuration.

        Parameters
        ----------
        data : mapping
            The keys ``he`` (``lib`` and ``config``, or ``preset``), ``encrypt``, ``stay``, ``nonnegative``, ``metrics``
            and ``aggregation``; only ``he`` is required. What ``he.config`` leaves out is planned, see
            `secagg.scheme.presets`.

        Raises
        ------
        ConfigError
            Unknown or missing key, wrong type, unknown library, params that are unsafe or unsupported.
        """
        if not isinstance(data, Mapping):
            raise ConfigError(f"the configuration is {show(data)}; it must be a block of keys and values")
        _only(data, CONFIG_KEYS, "the configuration")
        numbers = dict(_block(data, "aggregation")) if "aggregation" in data else {}
        _only(numbers, tuple(Aggregation().to_dict()), "aggregation")
        he = _block(data, "he")
        _only(he, ("lib", "config", "preset"), "he")
        if "preset" in he and len(he) > 1:
            raise ConfigError("he.preset stands for lib and config; to change them, give these in its place")
        if numbers.get("precision") is None:
            known = numbers.get("max_abs") is not None or not _is_exact(he)
            numbers["precision"] = "fixed" if known else "auto"
        if numbers["precision"] == "fixed" and numbers.get("max_abs") is None and _is_exact(he):
            raise ConfigError("aggregation.precision is 'fixed': give aggregation.max_abs, or leave precision out")
        aggregation = Aggregation(**numbers)
        if "preset" in he:
            he = preset(he["preset"], aggregation.precision)
        if "lib" not in he:
            raise ConfigError(f"he needs 'lib', one of {', '.join(registered_backends())}, or 'preset'")
        lib = he["lib"] if isinstance(he["lib"], str) else show(he["lib"])
        check_registered(lib)
        return cls(
            lib=lib,
            params=plan_params(lib, _block(he, "config", inside="he"), aggregation),
            encrypt=Encrypt.from_value(data.get("encrypt", "all")),
            aggregation=aggregation,
            stay=read_patterns(data.get("stay", []), "stay"),
            nonnegative=read_patterns(data.get("nonnegative", []), "nonnegative"),
            metrics=check_metrics(data.get("metrics", [])),
        )

    @classmethod
    def load(cls, source: Source) -> Config:
        """Read a YAML (or JSON) file: a path, or its contents as bytes or a binary stream; see `from_dict`."""
        data = read_yaml(source)
        if not isinstance(data, Mapping):
            raise ConfigError(f"{name_of(source)} holds no configuration: it needs the keys he, encrypt, aggregation")
        return cls.from_dict(data)

    def to_dict(self) -> dict[str, Any]:
        """Return the dictionary that `from_dict` reads back to an equal configuration."""
        return {
            "he": {"lib": self.lib, "config": self.params.to_dict()},
            "encrypt": self.encrypt.to_value(),
            "stay": list(self.stay),
            "nonnegative": list(self.nonnegative),
            **({"metrics": list(self.metrics)} if self.metrics else {}),  # manifests are older than it
            "aggregation": self.aggregation.to_dict(),
        }


def _is_exact(he: Mapping[str, Any]) -> bool:
    """Return whether an ``he`` block is of an exact scheme; what is wrong with it is said when it is read."""
    try:
        return is_exact(he)
    except (ConfigError, BackendUnavailableError):
        return False


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
