"""How long encryption and decryption take on this machine: measured on a few blocks, and scaled to the model."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ..aggregator import Aggregator
from ..backends.registry import load_backend
from ..client import Client
from ..config import Config
from ..keygen import generate_keys
from ..scheme.codec import codec_for
from ..scheme.params import LatticeParams
from ..scheme.ring import Ring
from ..trust.key import ClientKey
from ..wire.header import NONCE_NBYTES, Contribution, Header

#: By how many more contributions the time that each adds to decryption is measured.
_MORE_SITES = 64

_FEWEST_BLOCKS = 4
_REPEATS = 3

#: Blocks are as many as one site encrypts in about this time.
_SAMPLE_SECONDS = 0.05


class Seconds(NamedTuple):
    """Estimated wall-clock time of a site's work in one round."""

    encrypt: float
    decrypt: float


def measure(config: Config, header: Header) -> Seconds:
    """Encrypt and decrypt a few blocks with real keys, and scale by the number of blocks.

    Parameters
    ----------
    config : Config
        What to measure.
    header : Header
        Of the aggregate of the whole model.

    Raises
    ------
    BackendUnavailableError
        If the HE library is not installed.
    SecAggError
        If it refuses the params.
    """
    # The sample is one tensor, which no pattern of max_abs would match, and the sum of two sites.
    aggregation = replace(config.aggregation, min_clients=2, max_abs=max(config.aggregation.bounds))
    config = replace(config, aggregation=aggregation)
    total, sites = header.blocks("encrypted"), len(header.contributions)
    keys = generate_keys(config)
    clients = [Client(config, keys.client, name) for name in ("site-1", "site-2")]
    # A weight of 1 would drown in the error of the sum where max_weight is a number of examples.
    weight = config.aggregation.max_weight

    blocks = min(total, _FEWEST_BLOCKS)
    state = _state(config, blocks)
    clients[0].encrypt(state, weight=weight)  # libraries load and warm up
    once = _median(lambda: clients[0].encrypt(state, weight=weight))
    blocks = min(total, max(blocks, int(blocks * _SAMPLE_SECONDS / once)))
    state = _state(config, blocks)

    aggregator = Aggregator(config, keys.server)
    for client in clients:
        aggregator.add(client.encrypt(state, weight=weight))
    aggregate = aggregator.finish()
    encrypt = _median(lambda: clients[0].encrypt(state, weight=weight))
    decrypt = _median(lambda: clients[0].decrypt(aggregate))
    if sites > len(clients):
        decrypt += (sites - len(clients)) * _contribution_seconds(config, keys.client, blocks)
    return Seconds(encrypt * total / blocks, decrypt * total / blocks)


def _contribution_seconds(config: Config, key: ClientKey, blocks: int) -> float:
    """Return by how much each contribution lengthens the decryption of a sum of so many blocks.

    Under more nonces, zeros decrypt to nonsense, but in the time of a real sum.
    """
    params = config.params
    if isinstance(params, LatticeParams) and not params.seeded:
        return 0.0  # both polynomials were added by the server
    backend = load_backend(config.lib)(params, key)
    size = blocks * Ring.of_update(params, key.server.primes).block_size

    def decrypt(count: int) -> float:
        contributions = [Contribution(f"site-{number}", os.urandom(NONCE_NBYTES)) for number in range(count)]
        return _median(lambda: backend.cipher(0, contributions).decrypt(0, np.zeros(size, dtype=np.uint64)))

    return max(0.0, decrypt(2 + _MORE_SITES) - decrypt(2)) / _MORE_SITES


def _state(config: Config, blocks: int) -> dict[str, Any]:
    """Return a state whose update has so many blocks."""
    codec, bound = codec_for(config.params, config.aggregation), max(config.aggregation.bounds)
    size = blocks * codec.block_values - codec.weight_values
    return {"sample": np.random.default_rng(0).uniform(-bound, bound, size).astype(np.float32)}


def _median(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
