"""What the callback uses of Lightning: if a release moves something, the test says what."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch.utils.data import DataLoader, TensorDataset

import secagg.integrations.lightning

#: Everything: what is imported, the hooks, and what is read and set of the Trainer.
IMPORTED = {"Callback", "LightningModule", "Trainer", "SingleDeviceStrategy"}
HOOKS = ("on_train_start", "on_train_epoch_start", "on_train_batch_end", "on_train_epoch_end", "on_train_end")
TRAINER = ("strategy", "max_epochs", "min_epochs", "min_steps", "fast_dev_run", "train_dataloader")
TRAINER += ("is_last_batch", "should_stop")


def test_no_more_is_imported() -> None:
    names = set()
    for file in Path(secagg.integrations.lightning.__file__ or "").parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "lightning":
                names |= {alias.name for alias in node.names}
    assert names == IMPORTED


def test_what_a_single_device_is() -> None:
    assert not issubclass(DDPStrategy, SingleDeviceStrategy)


class Told(Callback):
    def __init__(self, stop: bool, broken: bool = False) -> None:
        self.stop, self.broken = stop, broken
        self.events: list[str] = []

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        self.events.append("on_train_start")
        assert all(hasattr(trainer, name) for name in TRAINER)
        assert isinstance(trainer.strategy, SingleDeviceStrategy)
        assert trainer.max_epochs == 2
        assert len(trainer.train_dataloader.dataset) == 4  # type: ignore[union-attr]
        trainer.should_stop = self.stop

    def on_train_epoch_start(self, *_: Any) -> None:
        self.events.append("on_train_epoch_start")

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.events.append("on_train_batch_end")
        if self.broken:
            raise ZeroDivisionError
        if trainer.is_last_batch:
            self.events.append("last")
            trainer.should_stop = True

    def on_validation_start(self, *_: Any) -> None:
        self.events.append("validate")

    def on_train_epoch_end(self, *_: Any) -> None:
        self.events.append("on_train_epoch_end")

    def on_train_end(self, *_: Any) -> None:
        self.events.append("on_train_end")

    def on_exception(self, *_: Any) -> None:
        self.events.append("on_exception")


class Line(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(1, 1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.net(batch[0]).sum()  # type: ignore[no-any-return]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(folder: Path, told: Told) -> list[str]:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    data = DataLoader(TensorDataset(torch.ones(4, 1)), batch_size=2)
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        callbacks=[told],
        default_root_dir=folder,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        **quiet,
    )
    trainer.fit(Line(), data, data)
    return told.events


def test_the_last_batch_ends_before_validation_and_can_end_training(tmp_path: Path) -> None:
    batches = ["on_train_batch_end", "on_train_batch_end", "last", "validate"]
    events = fit(tmp_path, Told(False))
    assert events == ["on_train_start", "on_train_epoch_start", *batches, "on_train_epoch_end", "on_train_end"]
    assert set(HOOKS) <= set(events)


def test_training_can_end_before_its_first_batch(tmp_path: Path) -> None:
    assert fit(tmp_path, Told(True)) == ["on_train_start", "on_train_end"]


def test_an_exception_is_told(tmp_path: Path) -> None:
    told = Told(False, broken=True)
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path, told)
    assert told.events[-1] == "on_exception"
