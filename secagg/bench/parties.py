"""What sites and a server do in a round, encrypted and raw: the same calls for both, so that both can be timed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..aggregator import Aggregator
from ..client import Client
from ..config import Config
from ..keygen import generate_keys
from ..setup.trial import Trial
from ..trust.key import ServerKey
from ..wire.layout import Layout
from ..wire.update import Update

#: What each site sends is the model times this: the sum is of two different updates, and the mean exact in float32.
SHARES = (1.0, 0.5)

#: Values with which a library warms up.
_WARM_UP = 1000

State = Mapping[str, NDArray[Any]]


def kinds_of(config: Config | None) -> tuple[str, ...]:
    """Return what sites send, in order: a calibration before the update, where scales are measured."""
    return ("calibration", "update") if config is not None and config.aggregation.calibrated else ("update",)


class Sites(Protocol):
    """Both sites of a round, who are one process."""

    @property
    def kinds(self) -> Sequence[str]:
        """What they send, in order: a calibration before the update, where scales are measured."""

    def send(self, site: int, kind: str, received: bytes | None) -> bytes:
        """Return the message of a kind, after what the server has answered to the kind before."""

    def receive(self, blob: bytes) -> State:
        """Return the mean."""


class Sum(Protocol):
    """What a server makes of the messages of one kind."""

    def add(self, blob: bytes) -> None:
        """Add a message that is in memory."""

    def add_file(self, path: Path) -> None:
        """Add a message as a server does it that keeps them in files."""

    def finish(self) -> Iterable[bytes | memoryview]:
        """Return the answer, in parts."""


class EncryptedSites:
    """Two sites under a configuration, with keys of their own; the libraries are warm.

    Parameters
    ----------
    config : Config
        The configuration.
    layout : Layout
        The model's, under it.
    state : mapping of str to ndarray
        What is encrypted, under all its names.
    """

    def __init__(self, config: Config, layout: Layout, state: State) -> None:
        self.kinds = kinds_of(config)
        keys = generate_keys(config)
        self.key = keys.server
        trial = Trial(config, keys.client)
        values = np.linspace(-trial.bound, trial.bound, _WARM_UP, dtype=np.float32)
        scales = trial.scales([values, values])
        trial.sites[0].decrypt(trial.aggregate([values, values], scales))
        self._layout, self._states = layout, [_times(state, share) for share in SHARES]
        self._clients = [Client(config, keys.client, f"site-{number + 1}") for number in range(len(SHARES))]

    def send(self, site: int, kind: str, received: bytes | None) -> bytes:
        """Return what a site sends; see `Sites`."""
        client, state = self._clients[site], self._states[site]
        if kind == "calibration":
            return client.calibrate(state, layout=self._layout).to_bytes()
        scales = None if received is None else Update.from_bytes(received)
        return client.encrypt(state, layout=self._layout, calibration=scales).to_bytes()

    def receive(self, blob: bytes) -> State:
        """Return the mean."""
        return self._clients[-1].decrypt(Update.from_bytes(blob))


class RawSites:
    """What sites do that encrypt nothing: values as float32, one after another."""

    def __init__(self, layout: Layout, state: State) -> None:
        self.kinds = kinds_of(None)
        self._specs, self._states = layout.sent, [_times(state, share) for share in SHARES]

    def send(self, site: int, kind: str, received: bytes | None) -> bytes:
        """Return what a site sends."""
        state = self._states[site]
        return b"".join(state[spec.name].astype(np.float32, copy=False).tobytes() for spec in self._specs)

    def receive(self, blob: bytes) -> State:
        """Return the mean."""
        mean, state, start = np.frombuffer(blob, np.float32) / len(SHARES), {}, 0
        for spec in self._specs:
            state[spec.name] = mean[start : start + spec.size].reshape(spec.shape)
            start += spec.size
        return state


class EncryptedSum:
    """What a server does under a configuration; see `Sum`."""

    def __init__(self, config: Config, key: ServerKey, kind: str) -> None:
        self._aggregator = Aggregator(config, key, kind=kind)

    def add(self, blob: bytes) -> None:
        """Read a message and add it."""
        self._aggregator.add(Update.from_bytes(blob))

    def add_file(self, path: Path) -> None:
        """Add a message, a frame at a time."""
        with Update.open(path) as update:
            self._aggregator.add(update)

    def finish(self) -> Iterable[bytes | memoryview]:
        """Return the answer, in parts."""
        return self._aggregator.finish().chunks()


class RawSum:
    """What a server does that adds float32; see `Sum`."""

    def __init__(self) -> None:
        self._total: NDArray[np.float32] | None = None

    def add(self, blob: bytes) -> None:
        """Read a message and add it."""
        message = np.frombuffer(blob, np.float32)
        if self._total is None:
            self._total = np.zeros_like(message)
        self._total += message

    def add_file(self, path: Path) -> None:
        """Add a message."""
        self.add(path.read_bytes())

    def finish(self) -> Iterable[bytes | memoryview]:
        """Return the answer, in parts."""
        assert self._total is not None
        return [self._total.data.cast("B")]


def _times(state: State, share: float) -> State:
    return {
        name: value if share == 1 or value.dtype.kind != "f" else value * value.dtype.type(share)
        for name, value in state.items()
    }
