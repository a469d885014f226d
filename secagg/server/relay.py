"""The server's side of a federation whose messages a framework carries: one exchange a round, in memory."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import secagg

from ..errors import LayoutError, MismatchError, RoundMismatchError
from ..protocol.handout import Handout
from ..scheme.metric_names import check_metrics
from ..trust.agreement import check_first_model, check_header, check_one_exchange, check_project_layout
from ..trust.kit import ServerKit, server_kit
from ..wire.metrics import metric_tensors, model_layout
from ..wire.state_dict import check_finite


class Relay:
    """Adds the updates of each round, and says what each site needs for the next. For one thread; nothing is on disk.

    It keeps the aggregates that a site may not have yet: all of them, or those since a global model that a site has
    encrypted for it.

    Parameters
    ----------
    kit : path or ServerKit
        The server's kit.
    initial : mapping of str to torch.Tensor or numpy.ndarray
        The first global model, as all sites get it from the framework, in the clear.
    metrics : sequence of str, optional
        Names of the metrics that travel encrypted with updates, where they are others than those of the configuration;
        see `secagg.site.GlobalModel`.

    Raises
    ------
    ConfigError
        If the configuration needs two exchanges a round (``precision: auto``), or the names are none.
    LayoutError, RangeError
        If the model cannot be aggregated, or is another than the project's.
    KeyFileError
        If the kit is damaged, or not the server's.
    IdentityError
        If the project is not valid now.

    Attributes
    ----------
    run : str
        Name of the run, drawn at random: what belongs to another one is refused.
    round : int
        The round whose updates are added.
    base : bytes
        What its training begins from.
    """

    def __init__(
        self,
        kit: ServerKit | str | os.PathLike[str],
        initial: Mapping[str, Any],
        *,
        metrics: Sequence[str] | None = None,
    ) -> None:
        self._kit = server_kit(kit)
        project = self._kit.project
        check_one_exchange(self.config)
        project.check_time()
        self._metrics = self.config.metrics if metrics is None else check_metrics(metrics)
        self._layout = model_layout(initial, self.config, self._metrics)
        check_project_layout(project, self._layout)
        check_first_model(project, initial)
        self._layout.bounds(self.config.aggregation)  # sites would refuse it only when they have begun
        state = {**initial, **metric_tensors(self._metrics)}
        check_finite(self._layout, state)
        self.run = secrets.token_hex(16)
        self.round = 0
        self.base = self._layout.base(state, self.run)
        self._start = 0  # round of the model that a latecomer begins with
        self._model = b""  # which is the first one, if this is empty
        self._aggregates: list[bytes] = []  # those since
        self._sum = self._open()

    @property
    def config(self) -> secagg.Config:
        """The federation's configuration."""
        return self._kit.config

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites whose updates of this round have been added."""
        return self._sum.sites

    @property
    def wants_model(self) -> bool:
        """Whether a site should be asked to return its global model: a latecomer would have to fetch more without."""
        model = sum(spec.size * np.dtype(spec.dtype).itemsize for spec in self._layout.sent)
        return sum(map(len, self._aggregates)) > model

    def handout(self, since: int | None, *, store: bool = False) -> Handout:
        """Return what a site needs to train the current round, or to evaluate the model that it begins from.

        Parameters
        ----------
        since : int or None
            The round that its global model is of. None: it may have none.
        store : bool
            Whether to ask it for its encrypted global model.
        """
        late = since is None or not self._start <= since <= self.round
        return Handout(
            self.run,
            self.round,
            self._kit.project.signed,
            first=late,
            model=self._model if late else b"",
            aggregates=tuple(self._aggregates if late or since is None else self._aggregates[since - self._start :]),
            store=store,
            metrics=self._metrics,
        )

    def add(self, update: bytes, model: bytes = b"") -> secagg.Header:
        """Verify what a site has returned as a whole, then add it: all or nothing.

        Parameters
        ----------
        update : bytes
            Its update of the round.
        model : bytes
            The encrypted global model of the round, from a site that was asked for it; or empty.

        Returns
        -------
        Header
            Of the update; who has signed it is its ``site``.

        Raises
        ------
        SecAggError
            Whatever update or model are refused for; see `secagg.Aggregator.add`.
        """
        parsed = secagg.Update.from_bytes(update)
        if not model:
            self._sum.add(parsed)
            return parsed.header
        stored = secagg.Update.from_bytes(model)
        self._sum.add(parsed, commit=lambda: self._check_model(stored, parsed.header))
        self._start, self._model = self.round, model
        self._aggregates.clear()
        return parsed.header

    def finish(self) -> secagg.Update:
        """Return the aggregate of the round, and begin the next one.

        Raises
        ------
        QuorumError
            If fewer than ``min_clients`` updates were added; more may still be added then.
        """
        aggregate = self._sum.finish()
        base = aggregate.next_base
        assert base is not None  # all updates have one
        self._aggregates.append(aggregate.to_bytes())
        self.round, self.base = self.round + 1, base
        self._sum = self._open()
        return aggregate

    def _open(self) -> secagg.Aggregator:
        return secagg.Aggregator.load(self._kit, self.round, self._layout, base=self.base)

    def _check_model(self, model: secagg.Update, update: secagg.Header) -> None:
        """Refuse a global model that is not of this round, or that another site has made than the update."""
        header = model.header
        check_header(header, "model", self.config, self._kit.key)
        if header.round != self.round:
            raise RoundMismatchError(f"the model of {header.site!r} is of round {header.round}, not {self.round}")
        if (header.base, header.site) != (self.base, update.site):
            raise MismatchError(
                f"the model of {header.site!r}, which came with the update of {update.site!r}, is not the one that "
                f"round {self.round} begins from"
            )
        fault = self._layout.difference(header.layout)
        if fault:
            raise LayoutError(f"the model of {header.site!r} has another layout: {fault}")
        self._kit.project.check_signature(model)
        for _ in model.frames():  # checks each digest
            pass
