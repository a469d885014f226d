"""The callback: a Lightning ``Trainer`` takes part in a federation, a round an epoch."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy

from secagg.errors import ConfigError
from secagg.site import Session, train_rounds
from secagg.trust import SiteKit


class SecAggCallback(Callback):
    """Makes each epoch of ``trainer.fit()`` a round of a federation, by secagg's own server.

    The module holds the global model when training begins, and after the last batch of each epoch, when it is validated
    and saved: what the epoch has trained was encrypted and sent, and the mean of all sites has taken its place.
    ``max_epochs`` are the rounds of the federation, also those without this site: training ends when they are done. A
    site that comes late or back trains what is left, in a new process or with another Trainer and this callback.

    The state of optimisers and schedulers stays at the site and goes on. So do integer tensors, and what ``stay`` in
    the configuration names. Training is on one device.

    Parameters
    ----------
    kit : path or SiteKit
        The site's kit.
    session : secagg.site.Session
        Its connection, such as a `secagg.integrations.grpc.SiteSession`.
    weight : float, optional
        The private weight of this site in the mean. Without it, the length of the training dataset.

    Raises
    ------
    SecAggError
        By ``trainer.fit()``: `ConfigError` if there are several devices, or no length of the dataset, or no end
        (``max_epochs=-1``); and whatever `secagg.site.train_rounds` raises.
    """

    def __init__(self, kit: SiteKit | str | os.PathLike[str], session: Session, *, weight: float | None = None) -> None:
        self._kit, self._session, self._weight = kit, session, weight
        self._rounds: Generator[int, None, None] = (round for round in range(0))
        self._trained = False  # whether there is something that was not sent

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Join, and load the global model."""
        if not isinstance(trainer.strategy, SingleDeviceStrategy):
            raise ConfigError(f"SecAggCallback is for one device, not for {type(trainer.strategy).__name__}: devices=1")
        self._rounds.close()
        weight = _examples(trainer) if self._weight is None else self._weight
        self._rounds = train_rounds(self._kit, self._session, pl_module, weight, trainer.max_epochs or 0)
        self._next(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a round."""
        self._trained = True

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """After the last one, send what was trained, wait for the others, and load the mean: before validation."""
        if trainer.is_last_batch:
            self._next(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do the same after an epoch that was cut short."""
        if self._trained:
            self._next(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the federation, if training ends before its rounds."""
        self._rounds.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave it, for now."""
        self._rounds.close()

    def _next(self, trainer: Trainer) -> None:
        self._trained = False
        if next(self._rounds, None) is None:
            trainer.should_stop = True


def _examples(trainer: Trainer) -> int:
    try:
        return len(trainer.train_dataloader.dataset)  # type: ignore[union-attr]
    except (AttributeError, TypeError) as error:
        raise ConfigError(
            "the Trainer's dataloader does not tell how many examples: give SecAggCallback weight="
        ) from error
