"""The callback at two sites: a small module with BatchNorm, real Trainers, and a server over gRPC."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from callback_sites import ROUNDS, SITES, Sites
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from secagg.errors import ConfigError, KeyFileError, MismatchError
from secagg.integrations.lightning import SecAggCallback


class Points(LightningModule):
    def __init__(self, seed: int = 0, cut: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.net = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2))
        self.cut = cut

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if batch_idx == self.cut else None

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.01)


def points(name: str) -> DataLoader[Any]:
    draw = torch.Generator().manual_seed(SITES[name])
    data = torch.randn(SITES[name], 5, generator=draw)
    return DataLoader(TensorDataset(data, (data[:, 0] > 0).long()), batch_size=2)


class Kept(Callback):
    """Comes before ours: what an epoch has trained. `broken` is the epoch whose last batch raises an error."""

    def __init__(self, sites: Sites, name: str, broken: int | None = None) -> None:
        self.sites, self.name, self.broken = sites, name, broken
        self.validated: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if trainer.is_last_batch:
            self.keep(module)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.validated.append({name: value.clone() for name, value in module.state_dict().items()})

    def keep(self, module: LightningModule) -> None:
        if len(self.sites.trained[self.name]) == self.broken:
            raise ZeroDivisionError
        self.sites.keep(self.name, module)


class KeptAtTheEnd(Kept):
    def on_train_batch_end(self, *_: Any) -> None:
        pass

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.keep(module)


def trainer_of(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    given = {"max_epochs": ROUNDS, "accelerator": "cpu", "enable_checkpointing": False, "num_sanity_val_steps": 0}
    return Trainer(default_root_dir=folder, callbacks=list(callbacks), **(quiet | given | options))


def floats(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if value.is_floating_point()}


def test_each_epoch_is_a_round(sites: Sites, tmp_path: Path) -> None:
    """Both end with the mean of what they have trained, and that is what was validated, and saved."""
    kept = {name: Kept(sites, name) for name in SITES}
    modules = {name: Points() for name in SITES}

    def work(name: str, session: Any) -> None:
        saving = ModelCheckpoint(tmp_path / name, "{epoch}", monitor="accuracy", save_top_k=-1)
        callbacks = (kept[name], saving, SecAggCallback(sites[name], session))
        trainer_of(tmp_path, *callbacks, enable_checkpointing=True).fit(modules[name], points(name), points(name))

    sites.run(work)
    states = {name: floats(module.state_dict()) for name, module in modules.items()}
    sites.assert_mean(states, floats(Points().state_dict()))
    for name in SITES:
        saved = torch.load(tmp_path / name / f"epoch={ROUNDS - 1}.ckpt", weights_only=False)["state_dict"]
        for key, value in states[name].items():
            assert torch.equal(value, kept[name].validated[-1][key])
            assert torch.equal(value, saved[key])
        assert len(kept[name].validated) == ROUNDS
        assert any(not torch.equal(value, sites.trained[name][-1][key]) for key, value in states[name].items())
        # A count of batches is a site's own: the global model has none.
        assert modules[name].net[1].num_batches_tracked == ROUNDS * SITES[name] // 2


@pytest.mark.parametrize("limits", [{}, {"limit_train_batches": 2, "accumulate_grad_batches": 4}])
def test_an_epoch_that_is_cut_short(sites: Sites, tmp_path: Path, limits: dict[str, int]) -> None:
    """The module or the Trainer ends epochs before the last batch: they are rounds all the same."""
    cut = None if limits else 1
    modules = {name: Points(cut=cut) for name in SITES}

    def work(name: str, session: Any) -> None:
        kept = Kept(sites, name) if limits else KeptAtTheEnd(sites, name)
        trainer = trainer_of(tmp_path, kept, SecAggCallback(sites[name], session), **limits)
        trainer.fit(modules[name], points(name), points(name))

    sites.run(work)
    sites.assert_mean(
        {name: floats(module.state_dict()) for name, module in modules.items()}, floats(Points().state_dict())
    )


def test_an_error_in_the_middle_and_a_start_after_the_end(sites: Sites, tmp_path: Path) -> None:
    """A site fails in its second round and goes on with another Trainer; at last there is nothing left to train."""
    modules = {name: Points() for name in SITES}

    def work(name: str, session: Any) -> None:
        kept = Kept(sites, name, broken=1 if name == "b" else None)
        if name == "b":
            with pytest.raises(ZeroDivisionError):
                trainer_of(tmp_path, kept, SecAggCallback(sites[name], session)).fit(
                    modules[name], points(name), points(name)
                )
            modules[name], kept.broken = Points(), None
        trainer_of(tmp_path, kept, SecAggCallback(sites[name], session)).fit(modules[name], points(name), points(name))

    sites.run(work)
    states = {name: floats(module.state_dict()) for name, module in modules.items()}
    sites.assert_mean(states, floats(Points().state_dict()))
    again = Points()
    with sites.session("a") as session:
        trainer = trainer_of(tmp_path, SecAggCallback(sites["a"], session))
        trainer.fit(again, points("a"), points("a"))
    assert trainer.global_step == 0
    assert all(torch.equal(value, states["a"][name]) for name, value in floats(again.state_dict()).items())


def test_what_is_wrong_is_found_before_the_first_step(sites: Sites, tmp_path: Path) -> None:
    def fit(data: Any = None, kit: Any = None, weight: Any = None, **options: Any) -> None:
        with sites.session("a") as session:
            callback = SecAggCallback(kit or sites["a"], session, weight=weight)
            trainer = trainer_of(tmp_path, callback, **options)
            try:
                trainer.fit(Points(), points("a") if data is None else data, points("a"))
            finally:
                assert trainer.global_step == 0

    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(points("a").dataset)  # type: ignore[call-overload]

    with pytest.raises(KeyFileError, match="is no kit"):
        fit(kit=tmp_path / "nowhere")
    with pytest.raises(KeyFileError, match="that of a site"):
        fit(kit=sites["server"])
    with pytest.raises(ConfigError, match="give SecAggCallback weight="):
        fit(DataLoader(Stream()))
    with pytest.raises(ConfigError, match="give SecAggCallback weight="):
        fit({"one": points("a"), "two": points("b")})
    with pytest.raises(ConfigError, match="number of training examples"):
        fit(weight="many")
    with pytest.raises(ConfigError, match="-1 rounds"):
        fit(max_epochs=-1, max_steps=3)
    with pytest.raises(ConfigError, match="DDPStrategy"):
        SecAggCallback(sites["a"], None).on_train_start(SimpleNamespace(strategy=DDPStrategy()), Points())  # type: ignore[arg-type]


def test_another_model_than_the_others(sites: Sites, tmp_path: Path) -> None:
    """One site begins from another seed: when the first update has come, the other is refused, and says why."""

    def work(name: str, session: Any) -> None:
        if name == "b":
            sites.wait_for_an_update(session)
            with pytest.raises(MismatchError):
                trainer_of(tmp_path, SecAggCallback(sites[name], session)).fit(
                    Points(seed=1), points(name), points(name)
                )
        trainer_of(tmp_path, SecAggCallback(sites[name], session)).fit(Points(), points(name), points(name))

    sites.run(work)
