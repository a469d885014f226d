"""Validation of each global model at a site: what it measures, and which of that goes with the update of the round."""

from __future__ import annotations

import math

from ..errors import ConfigError
from ..scheme.metric_names import METRICS
from .participant import Participant
from .task import CheckedTask


class Validation:
    """Measures the global model, once each; called, it returns the metrics, and the model of the task holds it then.

    Parameters
    ----------
    participant : Participant
        Has the global model.
    task : CheckedTask
        Measures it.
    """

    def __init__(self, participant: Participant, task: CheckedTask) -> None:
        self._participant, self._task = participant, task
        self._base, self._found = b"", dict[str, float]()

    def __call__(self) -> dict[str, float]:
        """Return the metrics of the global model; errors as of `CheckedTask.validate`."""
        model = self._participant.model
        self._task.load(model.state)
        if self._base != model.base:
            self._found, self._base = self._task.validate(), model.base
        return self._found

    def check(self) -> None:
        """Find out before hours of training what is of no use.

        Raises
        ------
        ConfigError
            If the configuration has a metric that the task, which measures others, does not know.
        """
        names, found = self._participant.model.metric_names, self()
        unknown = [name for name in names if name not in found]
        if unknown and self._task.validates:
            raise ConfigError(
                f"the configuration averages the metric {unknown[0]!r}, which the task does not return; it returns "
                f"{', '.join(map(repr, found)) or 'none'}: name one of these in metrics, or let validate() return nan "
                "where it cannot be measured"
            )
        if unknown:
            self._participant.reporter.warning(
                f"this site measures no {', '.join(names)}, and there is no mean of what a site does not measure"
            )

    def to_send(self, weight: float) -> dict[str, float]:
        """Return those of the configuration's metrics that can be sent; what is missing, the reporter is told."""
        model = self._participant.model
        found = self._found if self._base == model.base else self()
        sent = {name: found[name] for name in model.metric_names if name in found}
        bounded = not model.site.config.aggregation.calibrated
        for name, value in list(sent.items()):
            if not model.measurable(name, value, weight):
                del sent[name]
                self._participant.reporter.warning(
                    f"round {model.round}: the metric {name} is {value:.6g}, and not sent: the round has no mean of it"
                    + (f"; raise aggregation.max_abs of {METRICS}.{name}" if bounded and math.isfinite(value) else "")
                )
        return sent
