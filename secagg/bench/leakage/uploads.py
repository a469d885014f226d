"""A site's upload: real bytes of an update, made under a configuration with keys of its own, which nobody keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from ...aggregator import Aggregator
from ...client import Client
from ...config import Config
from ...errors import ConfigError
from ...keygen import generate_keys
from ...wire.layout import Layout
from ...wire.update import Update

#: What a site weighs, if it may: the server does not see it.
_WEIGHT = 237.0

State = dict[str, Tensor]


def check_fit(config: Config, title: str, tensors: State) -> None:
    """Raise `ConfigError` if a configuration does not fit a network: if a pattern is one of another model, say."""
    try:
        Layout.of(tensors, config).bounds(config.aggregation)
    except ConfigError as error:
        raise ConfigError(f"{error}; {title}, which is attacked, has {', '.join(tensors)}") from error


def encrypted(config: Config, states: Sequence[State]) -> list[bytes]:
    """Encrypt each update as one site of a federation does, and return the bytes that the server gets.

    Where scales are measured, a second site has measured its own update too: the next of `states`.

    Raises
    ------
    BackendUnavailableError
        If its library is not installed.
    RangeError
        If its ``max_abs`` is too small for the network.
    """
    sites = min(2, config.aggregation.max_clients)
    config = replace(config, aggregation=replace(config.aggregation, min_clients=sites))
    others = [[states[(number + site) % len(states)] for site in range(sites)] for number in range(len(states))]
    return [_round(config, sent) for sent in others]


def _round(config: Config, states: Sequence[State]) -> bytes:
    """Return the update of the first of the sites of a round."""
    keys = generate_keys(config)
    clients = [Client(config, keys.client, f"site-{number + 1}") for number in range(len(states))]
    weight, precision = min(_WEIGHT, config.aggregation.largest_weight), config.aggregation.precision
    scales, round = None, 0
    if precision != "fixed":
        kind, round = ("calibration", 0) if precision == "auto" else ("update", 1)
        total = Aggregator(config, keys.server, kind=kind, round=0)
        for client, state in zip(clients, states, strict=True):
            measure = client.calibrate if precision == "auto" else client.encrypt
            total.add(Update.from_bytes(measure(state, weight, 0).to_bytes()))
        scales = total.finish()
    return clients[0].encrypt(states[0], weight, round, calibration=scales).to_bytes()
