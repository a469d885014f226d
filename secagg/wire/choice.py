"""What becomes of each tensor under a configuration: by names, dtypes and shapes alone: a server can tell, too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..config import NONNEGATIVE, Config, Encrypt
from ..errors import ConfigError, LayoutError
from ..scheme.metric_names import is_metric
from ..scheme.patterns import matches, unmatched
from ..scheme.tensors import FLOAT_DTYPES


@dataclass(frozen=True)
class Described:
    """Names, dtype and shape of one tensor."""

    names: tuple[str, ...]
    dtype: str
    shape: tuple[int, ...]


def choose(
    tensors: Sequence[Described], config: Config | None, names: tuple[tuple[str, ...], ...] | None
) -> Iterator[tuple[Described, str, bool]]:
    """Yield each tensor that does not stay by the configuration, its role, and whether it must not become negative.

    Parameters
    ----------
    tensors : sequence of Described
        The tensors of a model, in order.
    config : Config, optional
        Without it, all float tensors are encrypted.
    names : tuple of tuple of str, optional
        All names of the model, each by itself, if they are known: a pattern of ``stay`` that matches none is an error.

    Raises
    ------
    LayoutError
        If no float tensor is sent: there is nothing to average.
    ConfigError
        If a pattern matches no tensor, or nothing would be encrypted.
    """
    stay = () if config is None else config.stay
    if names is not None:
        own = tuple(each for each in names if not is_metric(each[0]))
        used = {pattern for found in matches(stay, own) for pattern in found}
        _refuse_idle("stay", next((pattern for pattern in stay if pattern not in used), None))
    at_home = matches(stay, tuple(tensor.names for tensor in tensors))
    kept = [tensor for tensor, found in zip(tensors, at_home, strict=True) if not found or _measures(tensor)]
    floats = [tensor for tensor in kept if tensor.dtype in FLOAT_DTYPES]
    if not floats or (config is not None and all(map(_measures, floats))):
        raise LayoutError(
            "there is no float tensor to average: integer and bool tensors stay at the site, and so does what the "
            "configuration keeps there (stay); convert what is to be averaged, counts say, to floats"
        )
    every = tuple(tensor.names for tensor in floats)
    encrypted = {names[0] for names in every} if config is None else _encrypted(floats, config.encrypt)
    encrypted |= {tensor.names[0] for tensor in floats if _measures(tensor)}
    extra = () if config is None else config.nonnegative
    floored = matches((*NONNEGATIVE, *extra), every)
    _refuse_unmatched("nonnegative", extra, floored)
    never = {names[0] for names, found in zip(every, floored, strict=True) if found}
    for tensor in kept:
        name = tensor.names[0]
        role = "local" if tensor.dtype not in FLOAT_DTYPES else "encrypted" if name in encrypted else "clear"
        yield tensor, role, name in never


def _measures(tensor: Described) -> bool:
    """Return whether a tensor is of metrics, which are no part of the model: it is sent, encrypted, by any pattern."""
    return is_metric(tensor.names[0])


def _encrypted(floats: Sequence[Described], encrypt: Encrypt) -> set[str]:
    """Return the first names of the float tensors that are encrypted: those that are so by any of their names."""
    if encrypt.choice == "all":
        chosen = {tensor.names[0] for tensor in floats}
    elif encrypt.choice == "conv":
        chosen = {tensor.names[0] for tensor in floats if len(tensor.shape) >= 3 and _weights(tensor)}
    elif encrypt.choice == "first-middle-last":
        # A tied tensor counts once, by the first of its names that is a weight.
        weights = [_weights(tensor) for tensor in floats if len(tensor.shape) >= 2]
        modules = list(dict.fromkeys(found[0] for found in weights if found))
        picked = {modules[0], modules[len(modules) // 2], modules[-1]} if modules else set()
        chosen = {tensor.names[0] for tensor in floats if any(_module(name) in picked for name in tensor.names)}
    else:
        chosen = _by_patterns(floats, encrypt)
    if all(map(is_metric, chosen)):
        raise ConfigError(f"encrypt {encrypt.to_value()!r} would encrypt no tensor of this model")
    return chosen


def _by_patterns(floats: Sequence[Described], encrypt: Encrypt) -> set[str]:
    names = tuple((name,) for tensor in floats for name in tensor.names)
    include, exclude = encrypt.include or ("*",), encrypt.exclude
    included, excluded = matches(include, names), matches(exclude, names)
    _refuse_unmatched("encrypt", (*encrypt.include, *exclude), (*included, *excluded))
    chosen = {name for (name,), yes, no in zip(names, included, excluded, strict=True) if yes and not no}
    return {tensor.names[0] for tensor in floats if not chosen.isdisjoint(tensor.names)}


def _refuse_unmatched(key: str, patterns: Sequence[str], found: Sequence[tuple[str, ...]]) -> None:
    _refuse_idle(key, unmatched(patterns, found))


def _refuse_idle(key: str, idle: str | None) -> None:
    if idle is not None:
        raise ConfigError(f"{key}: pattern {idle!r} matches no tensor; `secagg inspect` lists the names")


def _weights(tensor: Described) -> list[str]:
    """Return the modules whose ``weight`` a tensor is."""
    return [_module(name) for name in tensor.names if name.rpartition(".")[2] == "weight"]


def _module(name: str) -> str:
    return name.rpartition(".")[0]
