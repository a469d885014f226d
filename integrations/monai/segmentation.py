"""Segmentation of a site's own data: a folder of the Medical Segmentation Decathlon, or one of its shape.

What all sites must do alike comes from the ``task:`` block of the signed manifest (`Settings`), what is the site's own
from its options. MONAI does the work: transforms (`prepare`), engines, sliding windows and TensorBoard curves.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from monai.data import DataLoader, partition_dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import IgniteMetricHandler, TensorBoardStatsHandler
from monai.inferers import SlidingWindowInferer
from monai.losses import DiceCELoss
from monai.metrics import DiceMetric
from monai.transforms import AsDiscreted

from secagg.errors import ConfigError, show

from .decathlon import Case, Decathlon, Report
from .prepared import prepare
from .settings import Settings


class Segmentation:
    """Trains a SegResNet on the cases of a folder: a task as of `secagg.site.Task`.

    Parameters
    ----------
    data : path
        Folder of ``dataset.json``.
    block : mapping of str to object or None
        The ``task:`` block of the manifest.
    fold : str
        Which of the cases are held out to validate the global model: ``2/5`` for the second of five parts.
    part : str
        Which of the cases are this site's at all: ``2/3`` for the second of three parts.
    device : str, optional
        Where to train; by default on a GPU, where there is one.
    threads : int, optional
        Of PyTorch.
    tensorboard : path, optional
        Folder for curves: the loss of each iteration, and the Dice of each global model.
    report : callable, optional
        Called with the amount of files read, and of all.

    Raises
    ------
    ConfigError
        If an option cannot be, the manifest has no such block, or the data is not what it says (`Decathlon`).

    Attributes
    ----------
    model : monai.networks.nets.SegResNet
        The network.
    examples : int
        Number of training cases.
    """

    def __init__(
        self,
        data: str | os.PathLike[str],
        block: Mapping[str, Any] | None,
        fold: str = "1/5",
        part: str = "1/1",
        device: str | None = None,
        threads: int | None = None,
        tensorboard: str | None = None,
        report: Report | None = None,
    ) -> None:
        if block is None:
            raise ConfigError(
                "the project's manifest has no `task:` block, so that sites would not agree on patch, spacing and "
                f"network: `secagg inspect {Path(data) / 'dataset.json'}` prints one; put it into project.yaml, and "
                "have the federation provisioned with it"
            )
        self._settings = settings = Settings.of_block(block)
        folds, parts = _read_share("fold", fold), _read_share("part", part)
        self._device = _device(device)
        if threads is not None:
            if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
                raise ConfigError(f"threads is {show(threads)}; use 1 or more")
            torch.set_num_threads(threads)
        report = report or _ignored
        listed = Decathlon.load(Path(data))
        settings.check_data(listed)
        training, held_out = _split(_part(listed, parts).cases(report), folds)
        self.examples = len(training)
        self._training, self._held_out = prepare(settings, training, held_out, report)
        self.model = settings.make_network()
        self._curves = _Curves(tensorboard) if tensorboard is not None else None

    def train(self, round: int, report: Report) -> None:
        """Train the network on patches of the training cases of this site."""
        settings = self._settings
        order = torch.Generator().manual_seed(int(np.random.SeedSequence((settings.seed, round)).generate_state(1)[0]))
        loader = DataLoader(self._training, batch_size=1, shuffle=True, generator=order)
        trainer = SupervisedTrainer(
            device=self._device,
            max_epochs=settings.epochs,
            train_data_loader=loader,
            network=self.model.to(self._device),
            optimizer=torch.optim.Adam(self.model.parameters(), settings.learning_rate),
            loss_function=DiceCELoss(to_onehot_y=True, softmax=True),
            train_handlers=self._curves.training(round) if self._curves else [],
        )
        total = settings.epochs * len(loader)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: report(engine.state.iteration, total))
        with warnings.catch_warnings():  # a case may be background alone: then patches are drawn anywhere
            warnings.filterwarnings("ignore", "Num foregrounds 0", UserWarning)
            trainer.run()

    def validate(self) -> dict[str, float]:
        """Return the Dice of the held-out cases as resampled: the mean over cases and classes, then of each class.

        Of a case without a class it is 1 if the network finds none either, and else 0.
        """
        settings = self._settings
        mean, *classes = settings.metrics
        additional: dict[str, Metric] = {name: _dice(number) for number, name in enumerate(classes, 1)}
        evaluator = SupervisedEvaluator(
            device=self._device,
            val_data_loader=DataLoader(self._held_out, batch_size=1),
            network=self.model.to(self._device),
            inferer=SlidingWindowInferer(settings.patch, sw_batch_size=4),
            postprocessing=AsDiscreted(("pred", "label"), argmax=(True, False), to_onehot=len(settings.labels)),
            key_val_metric={mean: _dice()},
            additional_metrics=additional,
            val_handlers=self._curves.validation() if self._curves else [],
        )
        evaluator.run()
        if self._curves:
            self._curves.flush()
        return {name: float(evaluator.state.metrics[name]) for name in settings.metrics}


class _Curves:
    """Curves for TensorBoard, by MONAI's handlers: one folder for all rounds, also of a site that is started again."""

    def __init__(self, folder: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(folder)
        self._round: int | None = None

    def training(self, round: int) -> list[TensorBoardStatsHandler]:
        """Return the handlers of the trainer of a round: the loss at each iteration, counted from round 0."""
        self._round = round
        return [
            TensorBoardStatsHandler(
                self._writer, epoch_log=False, iteration_event_writer=partial(_write_loss, begun=round)
            )
        ]

    def validation(self) -> list[TensorBoardStatsHandler]:
        """Return the handlers of an evaluator: all metrics, at the round that has led to this global model.

        None before the first training, and when the same model is validated again.
        """
        round, self._round = self._round, None
        if round is None:
            return []
        return [TensorBoardStatsHandler(self._writer, iteration_log=False, global_epoch_transform=lambda epoch: round)]

    def flush(self) -> None:
        """Write what is not written yet: a round is seen when it has ended, and outlives what interrupts the next."""
        self._writer.flush()


def _ignored(done: float, total: float) -> None:
    pass


def _write_loss(engine: Engine, writer: Any, begun: int) -> None:
    state: Any = engine.state
    step = begun * state.max_epochs * state.epoch_length + state.iteration
    writer.add_scalar("train_loss", state.output[0]["loss"], step)


def _dice(number: int | None = None) -> IgniteMetricHandler:
    """Return the Dice of a class, or the mean of all but the background.

    Where a class is in neither it is 1, in one of both 0: a NaN would leave the mean of all sites without it.
    """
    channels = slice(1, None) if number is None else slice(number, number + 1)

    def pairs(output: Sequence[Mapping[str, torch.Tensor]]) -> tuple[list[torch.Tensor], ...]:
        return tuple([case[key][channels] for case in output] for key in ("pred", "label"))

    return IgniteMetricHandler(metric_fn=DiceMetric(ignore_empty=False), output_transform=pairs, save_details=False)


def _part(data: Decathlon, share: tuple[int, int]) -> Decathlon:
    """Return a data set with a part of the cases."""
    number, count = share
    if count > len(data.files):
        raise ConfigError(f"{data.folder} has {len(data.files)} cases, too few for {count} parts")
    return replace(
        data, files=tuple(sorted(partition_dataset(data.files, num_partitions=count, shuffle=True)[number - 1]))
    )


def _split(cases: list[Case], share: tuple[int, int]) -> tuple[list[Case], list[Case]]:
    """Return the cases to train with, and those that are held out."""
    number, count = share
    if len(cases) < 2:
        raise ConfigError("there is one case; one is needed to train with, and one to hold out")
    if count > len(cases):
        raise ConfigError(f"{len(cases)} cases are too few for {count} folds; use --fold 1/{len(cases)}")
    folds = partition_dataset(cases, num_partitions=count, shuffle=True)
    held_out = folds.pop(number - 1)
    return [case for fold in folds for case in fold], held_out


def _read_share(option: str, text: str) -> tuple[int, int]:
    """Return number and count of ``2/5``."""
    match = re.fullmatch(r"(\d{1,4})/(\d{1,4})", text) if isinstance(text, str) else None
    least = 2 if option == "fold" else 1
    if match is None or not 1 <= int(match[1]) <= int(match[2]) or int(match[2]) < least:
        raise ConfigError(f"{option} is {show(text)}: write 2/5 for the second of five")
    return int(match[1]), int(match[2])


def _device(name: str | None) -> torch.device:
    try:
        return torch.empty(0, device=name or ("cuda" if torch.cuda.is_available() else "cpu")).device
    except (RuntimeError, AssertionError) as error:  # the latter where PyTorch was built without CUDA
        raise ConfigError(f"device is {show(name)}: {error}") from error
