"""A site, or a server, in a process of its own, whose peak of memory is then its own: what runs there.

``python -m secagg.bench.growth.worker ROLE FOLDER PARAMETERS``. The folder holds ``config.json`` and the role's key.
Each line of standard input is a call, ``["calibrate", "site-1", …]``, and each line of standard output its result, both
JSON; `secagg.bench.growth.process` is the other side.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import secagg

from ...errors import PrivacyWarning, SecAggError
from ...scheme.codec import codec_for
from ...setup.trial import Trial
from ...trust.key import ClientKey, ServerKey, load_key
from ...wire.container import digest
from ..memory import peak, resident
from ..turns import stopwatch
from .model import BOUND, largest_difference, make_model

CONFIG_FILE, SITE_KEY_FILE, SERVER_KEY_FILE = "config.json", "client.key", "server.key"

#: A calibration rounds what values may be up to the next step but one.
_ROUNDED_UP = 2.0


class WrongMeanError(SecAggError):
    """A mean that is not that of the model: no number of its round counts, nor of any other."""


class Site:
    """Any site: all send the same model."""

    CALLS = ("calibrate", "encrypt", "decrypt", "above")

    def __init__(self, folder: Path, parameters: int) -> None:
        self._config = _config(folder)
        key = load_key(folder / SITE_KEY_FILE)
        assert isinstance(key, ClientKey)
        self._key = key
        self._model = make_model(parameters)
        self._nbytes = 4 * parameters
        _warm_up(self._config, key)
        self._start = resident()
        self._encrypting = self._decrypting = 0

    def calibrate(self, site: str, path: str) -> float:
        """Write the calibration of a site; return the seconds."""
        seconds, update = stopwatch(lambda: self._client(site).calibrate(self._model))
        update.save(path)
        return seconds

    def encrypt(self, scales: str | None, repeats: int, site: str, path: str) -> float:
        """Write the update of a site, a frame at a time; return the seconds that it takes, the median of `repeats`."""
        seconds = median(self._encrypt(site, path, scales) for _ in range(repeats))
        self._encrypting = peak() - self._start
        return seconds

    def decrypt(self, path: str, repeats: int) -> float:
        """Return the seconds to decrypt an aggregate, as of `encrypt`; its mean must be the model, and is checked."""
        seconds: list[float] = []
        mean: dict[str, Any] = {}
        for _ in range(repeats):
            mean.clear()
            with secagg.Update.open(path) as aggregate:
                sites, client = len(aggregate.header.contributions), self._client("site-1")
                elapsed, mean = stopwatch(partial(client.decrypt, aggregate))
            seconds.append(elapsed)
        self._decrypting = peak() - self._start - self._nbytes
        self._check(mean, sites)
        return median(seconds)

    def above(self) -> int:
        """Return the most bytes that there were at a time beside the model, its own or the mean."""
        return max(self._encrypting, self._decrypting)

    def _encrypt(self, site: str, path: str, scales: str | None) -> float:
        client = self._client(site)
        with ExitStack() as stack:
            # Into a stream: to bring a file to the disk takes a disk's time, and not the site's.
            file = stack.enter_context(open(path, "wb"))
            found = None if scales is None else stack.enter_context(secagg.Update.open(scales))
            return stopwatch(lambda: client.encrypt_to(file, self._model, calibration=found))[0]

    def _check(self, mean: dict[str, Any], sites: int) -> None:
        aggregation = self._config.aggregation
        bound = _ROUNDED_UP * BOUND if aggregation.calibrated else None
        most = codec_for(self._config.params, aggregation).mean_error(sites, float(sites), bound) + 2.0**-23
        found = largest_difference(self._model, mean)
        if not found <= most:
            raise WrongMeanError(
                f"the mean of {sites} sites is off by {found:.3g}, and by {most:.3g} at most if all is right"
            )

    def _client(self, site: str) -> secagg.Client:
        return secagg.Client(self._config, self._key, site)


class Server:
    """An aggregator of updates; `begin` makes it anew."""

    CALLS = ("begin", "add", "finish", "above", "libraries")

    def __init__(self, folder: Path, parameters: int) -> None:
        key = load_key(folder / SERVER_KEY_FILE)
        assert isinstance(key, ServerKey)
        self._config, self._key = _config(folder), key
        self.begin("update")
        digest()  # loads what it needs
        self._start = resident()

    def begin(self, kind: str) -> None:
        """Begin a sum."""
        self._aggregator = secagg.Aggregator(self._config, self._key, kind=kind)

    def add(self, path: str) -> float:
        """Add what lies in a file; return the seconds."""
        with secagg.Update.open(path) as update:
            return stopwatch(lambda: self._aggregator.add(update))[0]

    def finish(self, path: str) -> float:
        """Write the sum; return the seconds to close it."""
        seconds, aggregate = stopwatch(self._aggregator.finish)
        with open(path, "wb") as file:
            file.writelines(aggregate.chunks())
        return seconds

    def above(self) -> int:
        """Return the most bytes that there were at a time beside what was there before the first update."""
        return peak() - self._start

    def libraries(self) -> list[str]:
        """Return which HE libraries it has loaded: none."""
        return sorted({"tenseal", "Pyfhel", "seal", "torch"} & sys.modules.keys())


ROLES: dict[str, type[Site | Server]] = {"site": Site, "server": Server}


def main(role: str, folder: str, parameters: str) -> None:
    """Answer calls until standard input ends."""
    warnings.simplefilter("ignore", PrivacyWarning)
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what libraries print is no answer
        party = ROLES[role](Path(folder), int(parameters))
        for line in sys.stdin:
            call, *arguments = json.loads(line)
            assert call in party.CALLS
            work: Callable[..., Any] = getattr(party, call)
            try:
                answer = {"result": work(*arguments)}
            except SecAggError as error:
                answer = {"error": str(error), "wrong": isinstance(error, WrongMeanError)}
            print(json.dumps(answer), file=answers, flush=True)


def _config(folder: Path) -> secagg.Config:
    return secagg.Config.from_dict(json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")))


def _warm_up(config: secagg.Config, key: ClientKey) -> None:
    """Load all that encryption and decryption need."""
    trial = Trial(config, key)
    values = np.zeros(1000, np.float32)
    trial.sites[0].decrypt(trial.aggregate([values, values], trial.scales([values, values])))


if __name__ == "__main__":
    main(*sys.argv[1:])
