"""Sites and a server in one process: each round calibrates, then encrypts, as ``precision: auto`` has it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from precision_tasks import State

import secagg


class Federation:
    """An `Average` under encryption; residuals are carried from round to round.

    Parameters
    ----------
    he : dict
        The ``he`` block.
    weights : sequence of float
        One a site.
    aggregation
        What the ``aggregation`` block has beside the number of sites: nothing, if nobody configures it.
    """

    def __init__(self, he: dict[str, object], weights: Sequence[float], **aggregation: float) -> None:
        sites = {"min_clients": len(weights), "max_clients": len(weights)}
        self.config = secagg.Config.from_dict({"he": he, "aggregation": sites | aggregation})
        self.keys = secagg.generate_keys(self.config)
        self.sites = [secagg.Client(self.config, self.keys.client, f"site-{n}") for n in range(len(weights))]
        self._weights = weights
        self.nbytes = 0  # of the latest message of a site

    def __call__(self, changes: Sequence[State], round: int) -> State:
        scales = self.scales(changes, round)
        encrypted = self._sum(
            secagg.Aggregator(self.config, self.keys.server, round, calibration=scales.digest()),
            lambda site, change, weight: site.encrypt(change, weight, round, calibration=scales),
            changes,
        )
        return self.sites[0].decrypt(encrypted)

    def scales(self, changes: Sequence[State], round: int) -> secagg.Update:
        """Return the sum of what the sites' calibration messages count."""
        return self._sum(
            secagg.Aggregator(self.config, self.keys.server, round, kind="calibration"),
            lambda site, change, weight: site.calibrate(change, weight, round),
            changes,
        )

    def _sum(
        self,
        aggregator: secagg.Aggregator,
        message: Callable[[secagg.Client, State, float], secagg.Update],
        changes: Sequence[State],
    ) -> secagg.Update:
        for site, change, weight in zip(self.sites, changes, self._weights, strict=True):
            sent = message(site, change, weight)
            self.nbytes = sent.nbytes
            aggregator.add(sent)
        return aggregator.finish()
