"""A round of two sites and one tensor under a configuration, to see what it takes and whether a library is right."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..aggregator import Aggregator
from ..client import Client
from ..config import Config, Encrypt
from ..errors import PrivacyWarning
from ..trust.key import ClientKey
from ..wire.update import Update

#: Values are drawn from −BOUND to BOUND where the configuration bounds none.
_BOUND = 1.0


class Trial:
    """A federation of two sites whose model is one tensor, all encrypted; in round 0.

    Parameters
    ----------
    config : Config
        The configuration to try. Of ``max_abs`` it is the smallest number that counts; scales that would follow from
        an earlier round, which there is none of, are calibrated.
    key : ClientKey
        A key for it.

    Attributes
    ----------
    config : Config
        What is tried.
    sites : list of Client
        The two.
    bound : float
        Largest magnitude of a value.
    weight : float
        Of each site: the largest where there is one, as a small one would drown in the error of a sum of CKKS.
    """

    def __init__(self, config: Config, key: ClientKey) -> None:
        given = config.aggregation
        self.bound = min(given.bounds, default=_BOUND)
        self.weight = 1.0 if given.max_weight is None else given.max_weight
        aggregation = replace(
            given,
            min_clients=2,
            precision="auto" if given.calibrated else given.precision,
            max_abs=None if given.calibrated else self.bound,
        )
        self.config = replace(config, encrypt=Encrypt(), stay=(), nonnegative=(), aggregation=aggregation)
        self._key = key
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PrivacyWarning)
            self.sites = [Client(self.config, key, f"trial-{number}") for number in (1, 2)]

    def calibrate(self, site: int, values: NDArray[np.float32]) -> Update | None:
        """Return the calibration of a site; None where scales are given."""
        if not self.config.aggregation.calibrated:
            return None
        return self.sites[site].calibrate({"trial": values}, self.weight)

    def scales(self, values: Sequence[NDArray[np.float32]]) -> Update | None:
        """Return the scales for what both sites have to send; None where they are given."""
        sent = [self.calibrate(site, mine) for site, mine in enumerate(values)]
        calibrations = [update for update in sent if update is not None]
        return self._sum("calibration", calibrations) if calibrations else None

    def encrypt(self, site: int, values: NDArray[np.float32], scales: Update | None) -> Update:
        """Return the update of a site."""
        return self.sites[site].encrypt({"trial": values}, self.weight, calibration=scales)

    def aggregate(self, values: Sequence[NDArray[np.float32]], scales: Update | None) -> Update:
        """Return the aggregate of the updates of both sites."""
        return self._sum("update", [self.encrypt(site, mine, scales) for site, mine in enumerate(values)])

    def _sum(self, kind: str, updates: Sequence[Update]) -> Update:
        aggregator = Aggregator(self.config, self._key.server, kind=kind)
        for update in updates:
            aggregator.add(update)
        return aggregator.finish()
