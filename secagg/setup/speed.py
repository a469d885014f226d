"""How long encryption and decryption take on this machine: measured on a few blocks, and scaled to the model."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..backends.registry import load_backend
from ..config import Config
from ..keygen import generate_keys
from ..scheme.codec import codec_for
from ..scheme.params import LatticeParams
from ..scheme.ring import Ring
from ..trust.key import ClientKey
from ..wire.header import NONCE_NBYTES, Contribution, Header
from ..wire.update import Update
from .trial import Trial

#: By how many more contributions the time that each adds to decryption is measured.
_MORE_SITES = 64

_FEWEST_BLOCKS = 4
_REPEATS = 3

#: Blocks are as many as one site encrypts in about this time.
_SAMPLE_SECONDS = 0.05


class Seconds(NamedTuple):
    """Estimated wall-clock time of a site's work in one round; calibration, where there is one, is in both."""

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
    keys = generate_keys(config)
    trial = Trial(config, keys.client)
    codec = codec_for(trial.config.params, trial.config.aggregation)
    total, sites = header.blocks("encrypted"), len(header.contributions)
    if header.aggregation.precision == "auto":
        total += replace(header, kind="scales", calibration=None).blocks("encrypted")

    def work(values: NDArray[np.float32], scales: Update | None) -> int:
        """Do what a site does before it sends, and return of how many blocks that was."""
        sent = [trial.calibrate(0, values), trial.encrypt(0, values, scales)]
        return sum(update.header.blocks("encrypted") for update in sent if update is not None)

    values = _values(trial, _FEWEST_BLOCKS * codec.block_values)
    scales = trial.scales([values, values])
    blocks = work(values, scales)  # libraries load and warm up
    once = _median(lambda: work(values, scales))
    values = _values(trial, max(1, min(total, int(blocks * _SAMPLE_SECONDS / once))) * codec.block_values)
    scales = trial.scales([values, values])
    aggregate = trial.aggregate([values, values], scales)
    encrypt = _median(lambda: work(values, scales)) / work(values, scales)
    blocks = aggregate.header.blocks("encrypted")
    decrypt = _median(lambda: trial.sites[0].decrypt(aggregate)) / blocks
    if sites > len(trial.sites):
        decrypt += (sites - len(trial.sites)) * _contribution_seconds(config, keys.client, blocks) / blocks
    return Seconds(encrypt * total, decrypt * total)


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


def _values(trial: Trial, size: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).uniform(-trial.bound, trial.bound, size).astype(np.float32)


def _median(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
