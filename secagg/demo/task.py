"""The task that ``secagg site`` and ``secagg demo`` train: white matter in the MNI152 brain, one part of it a site."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..ui.progress import progress

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Part:
    """Part `number` (from 1) of `count` of the training data; written ``2/3``."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read the command line's form; `argparse` reports the error."""
        number, slash, count = text.partition("/")
        if not slash or not number.isdecimal() or not count.isdecimal() or not 1 <= int(number) <= int(count):
            raise argparse.ArgumentTypeError(f"{text!r}: write 2/3 for the second of three parts")
        return cls(int(number), int(count))


@dataclass(frozen=True)
class SiteRecord:
    """One round at one site: Dice of the new global model on held-out data, bytes sent, seconds of each step.

    `clipped` is how many values of the update were beyond ``max_abs`` and were clipped; `verified` whether the sum is
    verified to be that of the updates that it lists. What was trained and encrypted before a restart took 0 seconds.
    """

    round: int
    dice: float
    nbytes: int
    train_seconds: float
    encrypt_seconds: float
    upload_seconds: float
    wait_seconds: float
    decrypt_seconds: float
    clipped: int = 0
    verified: bool = False

    def append_to(self, path: Path | None) -> None:
        """Append the record to a file as a line of JSON."""
        if path is not None:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(self)) + "\n")


def read_records(path: Path) -> list[SiteRecord]:
    """Return the records of a file that a site is perhaps still writing."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [SiteRecord(**json.loads(line)) for line in lines]


class LocalTask:
    """Network, data and trainer of one site.

    Parameters
    ----------
    part : Part
        Which part of the training data is this site's.
    seed : int
        Of the initial network, the same at all sites, and of the order of the patches.
    """

    def __init__(self, part: Part, seed: int) -> None:
        from . import mni152

        self._mni152 = mni152
        self._part, self._seed = part, seed
        self.patches = mni152.site_patches(part.number - 1, part.count)
        self._validation = mni152.validation_patches()
        self.network = mni152.make_network(seed)

    def train(self, round: int, rounds: int, handlers: Iterable[Any] = ()) -> float:
        """Train one round and return its seconds, those of the handlers included."""
        from ignite.engine import Engine, Events

        seed = (self._seed, round, self._part.number)
        start = time.perf_counter()
        trainer = self._mni152.make_trainer(self.network, self.patches, seed=seed, handlers=handlers)
        with progress(f"round {round} ({round + 1} of {rounds}): train") as report:

            def show(engine: Engine) -> None:
                report(engine.state.iteration, (engine.state.max_epochs or 0) * (engine.state.epoch_length or 0))

            trainer.add_event_handler(Events.ITERATION_COMPLETED, show)
            trainer.run()
        return time.perf_counter() - start

    def dice(self, state: Mapping[str, torch.Tensor]) -> float:
        """Return the mean Dice of a model on the held-out data; the network then holds that model."""
        self.network.load_state_dict(state)
        return self._mni152.dice(self.network, self._validation)


def check_least(option: str, value: int, least: int = 1) -> int:
    """Return the value of an option, or raise `ConfigError` if it is below `least`."""
    if value < least:
        raise ConfigError(f"{option} is {value}; use {least} or more")
    return value
