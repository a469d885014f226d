"""The callback at two sites: a BERT of a few thousand parameters, real Trainers, and a server over gRPC."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from callback_sites import ROUNDS, SITES, Sites
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from secagg.errors import ConfigError, KeyFileError, MismatchError
from secagg.integrations.transformers import SecAggCallback
from secagg.site import train_rounds


def bert(kind: type = BertForSequenceClassification, seed: int = 0, hidden: int = 16) -> Any:
    torch.manual_seed(seed)
    return kind(
        BertConfig(
            vocab_size=40,
            hidden_size=hidden,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=8,
        )
    )


def sentences(name: str) -> list[dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(SITES[name])
    words = torch.randint(40, (SITES[name], 8), generator=draw)
    return [{"input_ids": row, "labels": (row[0] > 20).long()} for row in words]


class Kept(TrainerCallback):
    """Comes before ours: what an epoch has trained. `broken` is the epoch whose end raises an error."""

    def __init__(self, sites: Sites, name: str, broken: int | None = None) -> None:
        self.sites, self.name, self.broken, self.evaluated = sites, name, broken, []

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if len(self.sites.trained[self.name]) == self.broken:
            raise ZeroDivisionError
        self.sites.keep(self.name, kwargs["model"])

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.evaluated.append({name: value.clone() for name, value in kwargs["model"].state_dict().items()})


def trainer_of(model: Any, folder: Path, data: Any, *callbacks: TrainerCallback, **options: Any) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=ROUNDS,
        per_device_train_batch_size=4,
        learning_rate=0.01,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **options,
    )
    return Trainer(model, arguments, train_dataset=data, eval_dataset=data, callbacks=list(callbacks))


def test_each_epoch_is_a_round(sites: Sites, tmp_path: Path) -> None:
    """Both end with the mean of what they have trained, and that is what was evaluated."""
    kept = {name: Kept(sites, name) for name in SITES}
    networks = {name: bert() for name in SITES}

    def work(name: str, session: Any) -> None:
        callback = SecAggCallback(sites[name], session)
        trainer = trainer_of(
            networks[name], tmp_path / name, sentences(name), kept[name], callback, eval_strategy="epoch"
        )
        trainer.train()

    sites.run(work)
    states = {name: network.state_dict() for name, network in networks.items()}
    sites.assert_mean(states, bert().state_dict())
    for name in SITES:
        assert len(kept[name].evaluated) == ROUNDS
        assert all(torch.equal(value, states[name][key]) for key, value in kept[name].evaluated[-1].items())
        assert any(not torch.equal(v, kept["a"].evaluated[-1][k]) for k, v in sites.trained[name][-1].items())


def test_an_error_in_the_middle_and_a_start_after_the_end(sites: Sites, tmp_path: Path) -> None:
    """A site fails in its second round and goes on with another Trainer; at last there is nothing left to train."""
    networks = {name: bert() for name in SITES}

    def work(name: str, session: Any) -> None:
        callback = SecAggCallback(sites[name], session)
        kept = Kept(sites, name, broken=1 if name == "b" else None)
        if name == "b":
            with pytest.raises(ZeroDivisionError):
                trainer_of(networks[name], tmp_path / name, sentences(name), kept, callback).train()
            networks[name], kept.broken = bert(), None
        trainer_of(networks[name], tmp_path / name, sentences(name), kept, callback).train()

    sites.run(work)
    states = {name: network.state_dict() for name, network in networks.items()}
    sites.assert_mean(states, bert().state_dict())
    again = bert()
    with sites.session("a") as session:
        trainer_of(again, tmp_path / "again", sentences("a"), SecAggCallback(sites["a"], session)).train()
    assert all(torch.equal(value, states["a"][name]) for name, value in again.state_dict().items())


def test_tied_weights(sites: Sites, tmp_path: Path) -> None:
    """A language model whose output layer is its embedding: it stays one, the same at both sites."""
    networks = {name: bert(BertForMaskedLM) for name in SITES}

    def work(name: str, session: Any) -> None:
        data = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in sentences(name)]
        callback = SecAggCallback(sites[name], session)
        trainer_of(networks[name], tmp_path / name, data, Kept(sites, name), callback).train()

    sites.run(work)
    for network in networks.values():
        assert network.cls.predictions.decoder.weight is network.bert.embeddings.word_embeddings.weight
    sites.assert_mean(
        {name: network.state_dict() for name, network in networks.items()}, bert(BertForMaskedLM).state_dict()
    )


def test_what_is_wrong_is_found_before_the_first_step(sites: Sites, tmp_path: Path) -> None:
    def train(model: Any, data: Any = sentences("a"), kit: Any = None, weight: Any = None, **options: Any) -> None:  # noqa: B008
        with sites.session("a") as session:
            callback = SecAggCallback(kit or sites["a"], session, weight=weight)
            trainer_of(model, tmp_path / "out", data, callback, **options).train()
        raise AssertionError

    class Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(sentences("a"))

    with pytest.raises(KeyFileError, match="is no kit"):
        train(bert(), kit=tmp_path / "nowhere")
    with pytest.raises(KeyFileError, match="that of a site"):
        train(bert(), kit=sites["server"])
    with pytest.raises(ConfigError, match="has no length"):
        train(bert(), Stream(), weight=6, max_steps=2)
    with pytest.raises(ConfigError, match="number of training examples"):
        train(bert(), weight="many")


def test_another_model_than_the_others(sites: Sites, tmp_path: Path) -> None:
    """One site begins from another seed: when the first update has come, the other is refused, and says why."""

    def work(name: str, session: Any) -> str:
        if name == "b":
            sites.wait_for_an_update(session)
            with pytest.raises(MismatchError) as caught:
                trainer_of(bert(seed=1), tmp_path / name, sentences(name), SecAggCallback(sites[name], session)).train()
            assert caught.value
        networks = bert()
        trainer_of(networks, tmp_path / name, sentences(name), SecAggCallback(sites[name], session)).train()
        return ""

    sites.run(work)


def test_a_trainer_of_several_processes_is_refused(
    sites: Sites, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.training_args import ParallelMode

    trainer = trainer_of(bert(), tmp_path, sentences("a"), SecAggCallback(sites["a"], None))  # type: ignore[arg-type]
    monkeypatch.setattr(TrainingArguments, "parallel_mode", ParallelMode.DISTRIBUTED)
    with pytest.raises(ConfigError, match="one process"):
        trainer.train()


def test_what_an_error_leaves_behind_ends_quietly(sites: Sites, tmp_path: Path) -> None:
    """The session is closed before anybody ends the rounds: then nothing is said to the server, and the kit is free."""
    session = sites.session("a")
    callback = SecAggCallback(sites["a"], session)
    trainer = trainer_of(bert(), tmp_path, sentences("a"), Kept(sites, "a", broken=0), callback)
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    session.close()
    with pytest.raises(ConfigError, match="one kit, one process"):
        next(train_rounds(sites["a"], session, bert(), 6, ROUNDS))
    callback.close()
    with sites.session("a") as session:
        assert next(train_rounds(sites["a"], session, bert(), 6, ROUNDS)) == 0
