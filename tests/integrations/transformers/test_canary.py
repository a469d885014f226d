"""What the callback uses of Transformers: if a release moves something, the test says what."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments
from transformers.training_args import ParallelMode

import secagg.integrations.transformers

#: Everything: what is imported, the events, what they are given, and what is read and set.
IMPORTED = {"TrainerCallback", "TrainerControl", "TrainerState", "TrainingArguments", "ParallelMode"}
EVENTS = ("on_train_begin", "on_epoch_end", "on_train_end")
GIVEN = ("model", "train_dataloader")
MODES = {"NOT_PARALLEL", "NOT_DISTRIBUTED"}


def test_no_more_is_imported() -> None:
    names = set()
    for file in Path(secagg.integrations.transformers.__file__ or "").parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "transformers":
                names |= {alias.name for alias in node.names}
    assert names == IMPORTED


def test_the_modes_of_one_process() -> None:
    assert {mode.name for mode in ParallelMode} >= MODES
    assert {"DISTRIBUTED"} <= {mode.name for mode in ParallelMode} - MODES


class Told(TrainerCallback):
    def __init__(self, stop: bool) -> None:
        self.stop = stop
        self.events: list[str] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.events.append("on_train_begin")
        assert all(kwargs.get(name) is not None for name in GIVEN)
        assert len(kwargs["train_dataloader"].dataset) == 4
        assert state.num_train_epochs == 2
        assert args.parallel_mode.name in MODES
        control.should_training_stop = self.stop

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.events.append("step")

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.events.append("on_epoch_end")
        assert kwargs.get("model") is not None
        control.should_training_stop = True

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.events.append("evaluate")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.events.append("on_train_end")


def told(folder: Path, stop: bool) -> list[str]:
    size = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 4}
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=2,
        per_device_train_batch_size=2,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        eval_strategy="epoch",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    data = [{"input_ids": torch.tensor([1, 2]), "labels": torch.tensor(0)}] * 4
    callback = Told(stop)
    model = BertForSequenceClassification(BertConfig(vocab_size=4, max_position_embeddings=4, **size))
    Trainer(model, arguments, train_dataset=data, eval_dataset=data, callbacks=[callback]).train()
    assert set(EVENTS) <= set(callback.events)
    return callback.events


def test_the_epoch_ends_before_it_is_evaluated_and_can_end_training(tmp_path: Path) -> None:
    assert told(tmp_path, False) == ["on_train_begin", "step", "step", "on_epoch_end", "evaluate", "on_train_end"]


def test_the_trainer_takes_a_step_before_it_looks_at_its_control(tmp_path: Path) -> None:
    """Once it takes none, the callback need not keep the final model."""
    assert told(tmp_path, True) == ["on_train_begin", "step", "on_epoch_end", "evaluate", "on_train_end"]
