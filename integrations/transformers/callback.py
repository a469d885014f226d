"""The callback: a Hugging Face ``Trainer`` takes part in a federation, a round an epoch."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Generator
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.training_args import ParallelMode

from secagg.errors import ConfigError
from secagg.site import Session, load_network, network_state, train_rounds
from secagg.trust import SiteKit


class SecAggCallback(TrainerCallback):
    """Makes each epoch of ``trainer.train()`` a round of a federation, by secagg's own server.

    The model holds the global model when training begins, and after each epoch, when it is evaluated and saved: what
    the epoch has trained was encrypted and sent, and the mean of all sites has taken its place. ``num_train_epochs`` is
    the number of rounds of the federation, also those without this site: training ends when they are done. A site that
    comes late or back, in a new process, trains what is left; ``trainer.train()`` again does so, too.

    The state of optimiser and scheduler stays at the site and goes on. So do integer tensors, and what ``stay`` in the
    configuration names. The whole model must be in one process, which may have several GPUs (``DataParallel``).

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
        By ``trainer.train()``: `ConfigError` if the model is spread over processes, or the dataset has no length; and
        whatever `secagg.site.train_rounds` raises.
    """

    def __init__(self, kit: SiteKit | str | os.PathLike[str], session: Session, *, weight: float | None = None) -> None:
        self._kit, self._session, self._weight = kit, session, weight
        self._rounds: Generator[int, None, None] = (round for round in range(0))
        self._final: dict[str, Any] | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Join, and load the global model."""
        if args.parallel_mode not in (ParallelMode.NOT_PARALLEL, ParallelMode.NOT_DISTRIBUTED):
            raise ConfigError("SecAggCallback takes part for one process; start training without a launcher")
        if state.num_train_epochs == sys.maxsize:  # the Trainer's word for a dataset without a length
            raise ConfigError("an epoch is a round, and this dataset has no length: give one that has")
        self.close()
        network = kwargs["model"]
        weight = len(kwargs["train_dataloader"].dataset) if self._weight is None else self._weight
        self._rounds = train_rounds(self._kit, self._session, network, weight, state.num_train_epochs)
        self._next(control)
        # Nothing is left to train, but the Trainer takes one step before it looks at its control.
        self._final = copy.deepcopy(network_state(network)) if control.should_training_stop else None

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Send what the epoch has trained, wait for the others, and load the mean."""
        if self._final is None:
            self._next(control)
        else:
            load_network(kwargs["model"], self._final)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the federation, if training ends before its rounds."""
        self.close()

    def close(self) -> None:
        """Leave the federation and free the kit: after an error or Ctrl-C, of which the Trainer tells no callback."""
        self._rounds.close()

    def _next(self, control: TrainerControl) -> None:
        if next(self._rounds, None) is None:
            control.should_training_stop = True
