"""What every peer gets to do: the same model, the same sites, and a folder for its keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

State = dict[str, NDArray[np.float32]]

#: Standard deviation of the values, which are normal: what a round changes of a model, and more.
_SPREAD = 0.05

#: What no value is beyond: the bound, where a configuration names one.
BOUND = 10 * _SPREAD


@dataclass(frozen=True)
class Job:
    """What is sent, and by how many.

    Parameters
    ----------
    setting : str
        The name of the row, which is that of a setting where the peer is secagg itself.
    shapes : mapping of str to tuple of int
        Of the model's float32 tensors, in order.
    sites : int
        How many sites send their update.
    folder : str
        An own folder of this turn: keys, and messages.
    """

    setting: str
    shapes: Mapping[str, tuple[int, ...]]
    sites: int
    folder: str

    def save(self, path: Path) -> None:
        """Write the file that `load` reads."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Job:
        """Read what `save` has written."""
        data = json.loads(path.read_text(encoding="utf-8"))
        return cls(**data | {"shapes": {name: tuple(shape) for name, shape in data["shapes"].items()}})

    @cached_property
    def states(self) -> list[State]:
        """What each site has to send; the same in every process."""
        return [self._draw(site) for site in range(self.sites)]

    @cached_property
    def weights(self) -> list[int]:
        """Of each site in the mean."""
        return list(range(1, self.sites + 1))

    @property
    def keys(self) -> Path:
        """The folder of keys, which a site makes."""
        return Path(self.folder) / "keys"

    def flat(self, site: int) -> NDArray[np.float64]:
        """Return the values of a site, times its weight, in one vector."""
        return self.weights[site] * np.concatenate([value.reshape(-1) for value in self.states[site].values()]).astype(
            np.float64
        )

    def shaped(self, flat: NDArray[np.floating]) -> dict[str, NDArray[np.floating]]:
        """Return the tensors of one vector."""
        sizes = [int(np.prod(shape)) for shape in self.shapes.values()]
        parts = np.split(flat[: sum(sizes)], np.cumsum(sizes)[:-1])
        return {name: part.reshape(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def max_error(self, mean: Mapping[str, NDArray[np.floating]]) -> float:
        """Return how far a mean is off the weighted mean in float64, at the most."""
        total = sum(self.weights)
        worst = 0.0
        for name in self.shapes:
            expected = np.zeros(self.shapes[name])
            for weight, state in zip(self.weights, self.states, strict=True):
                expected += weight / total * state[name].astype(np.float64)
            worst = max(worst, float(np.abs(mean[name].reshape(expected.shape) - expected).max(initial=0.0)))
        return worst

    def _draw(self, site: int) -> State:
        draw = np.random.default_rng([site])
        return {
            name: np.asarray(draw.standard_normal(shape, np.float32) * np.float32(_SPREAD))
            for name, shape in self.shapes.items()
        }


def joined(parts: list[bytes]) -> bytes:
    """Return blocks in one message, each after its length."""
    return b"".join(piece for part in parts for piece in (len(part).to_bytes(4, "little"), part))


def split(message: bytes) -> list[bytes]:
    """Return the blocks of a message."""
    parts, place = [], 0
    while place < len(message):
        end = place + 4 + int.from_bytes(message[place : place + 4], "little")
        parts.append(message[place + 4 : end])
        place = end
    return parts
