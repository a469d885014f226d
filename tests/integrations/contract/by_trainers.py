"""Callbacks in the trainers of Hugging Face and Lightning: a thread for each site, and our server over gRPC."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import transformers
from by_grpc import SECONDS, serve
from provisioned import Federation
from schedule import SITES, Run, State, Task, Turn, arrays
from tasks import TorchDigits

import secagg.integrations.lightning
import secagg.integrations.transformers
from secagg.integrations.grpc import Server, SiteSession
from secagg.trust import Tls, load_site_kit


def run_trainers(fit: Fit, kits: Federation, task: Task, schedule: Sequence[Turn]) -> Run:
    assert isinstance(task, TorchDigits)
    with serve(kits) as server, ThreadPoolExecutor() as pool:
        world = World(kits, task, schedule, server)
        sites = sorted({site for turn in schedule for site in turn.trains})
        done = {site: pool.submit(world.take_part, fit, site) for site in sites}
        concurrent.futures.wait(done.values())
        failed = [future for future in done.values() if future.exception() is not None]
        for future in sorted(failed, key=lambda future: isinstance(future.exception(), FOLLOWS)):
            future.result()
        world.run.final = {site: future.result() for site, future in done.items()}
    return world.run


#: What sites raise because another has failed.
FOLLOWS = (AssertionError, threading.BrokenBarrierError)


class GoneError(Exception):
    """The process of a site has ended."""


class World:
    """The server, and where sites wait for each other."""

    def __init__(self, kits: Federation, task: TorchDigits, schedule: Sequence[Turn], server: Server) -> None:
        self.kits, self.task, self.schedule, self.server, self.run = kits, task, schedule, server, Run()
        self.doors = [
            threading.Barrier(len(turn.trains), partial(self._open, round), SECONDS)
            for round, turn in enumerate(schedule)
        ]

    def take_part(self, fit: Fit, site: str) -> dict[str, Any]:
        """Live as many lives as the schedule wants, and return the global model that the last one has."""
        try:
            for first, end in lives(self.schedule, site):
                while self.server.status().round < first:
                    assert not any(door.broken for door in self.doors), "another site has failed"
                    time.sleep(0.01)
                with suppress(GoneError), Session(Life(self, site, first)) as session:
                    state = fit(self.task, session, end)
            return arrays(state)
        except BaseException:
            for door in self.doors:
                door.abort()  # so that nobody waits for this site
            raise

    def _open(self, round: int) -> None:
        """Before a round is trained, say who is not to be waited for."""
        before = {site for turn in self.schedule[:round] for site in turn.trains}
        for site in (before | set(self.schedule[round].lost)) - set(self.schedule[round].sites):
            with Session(Life(self, site, round)) as session:
                session.skip(round)


class Life:
    """A process of a site, which begins with a round."""

    def __init__(self, world: World, site: str, round: int) -> None:
        self.world, self.site, self.round = world, site, round
        self.folder = world.kits[site]
        self._begun: State = {}

    def begin(self, network: torch.nn.Module) -> None:
        """The training of a round begins."""
        if self.round < len(self.world.schedule):  # not where a trainer takes a step that counts for nothing
            self.world.doors[self.round].wait()
            self._begun = arrays(network.state_dict())

    def end(self, network: torch.nn.Module) -> None:
        """It ends, and what has come out is not sent yet."""
        if self.round < len(self.world.schedule):
            self.world.run.saw(self.site, self.round, self._begun, network.state_dict())
            self.round += 1

    def die(self, *, sent: bool) -> None:
        """End, if it does so in the round that was trained last, before or after its update was sent."""
        turn = self.world.schedule[self.round - 1]
        if self.site in (turn.restarts if sent else turn.lost):
            raise GoneError


class Session(SiteSession):
    """A connection that ends with the life of its site."""

    def __init__(self, life: Life) -> None:
        kit = load_site_kit(life.folder)
        self.life, self.kit = life, kit
        super().__init__(
            life.world.server.address, kit.name, tls=Tls.load(kit.tls), project=kit.project, timeout=SECONDS
        )

    def upload(self, *arguments: Any, **options: Any) -> Any:
        self.life.die(sent=False)
        answer = super().upload(*arguments, **options)
        self.life.die(sent=True)
        return answer


def lives(schedule: Sequence[Turn], site: str) -> list[tuple[int, int]]:
    """The first round of each process of a site, and the one before which it ends by itself; then one for the end."""
    found: list[tuple[int, int]] = []
    last = -1  # round of the process so far, if it goes on
    for round, turn in enumerate(schedule):
        if site in turn.trains:
            first = found.pop()[0] if last == round - 1 and found else round
            found.append((first, round + 1))
            last = round if site not in turn.lost + turn.restarts else -1
    return [*found, (len(schedule), len(schedule))]


#: Trains a site's network for the rounds before one, and returns its state; the life is told of each epoch.
Fit = Callable[[TorchDigits, Session, int], State]


def run_transformers(kits: Federation, task: Task, schedule: Sequence[Turn]) -> Run:
    arguments = {  # before any of them trains: whenever they are made, accelerate's state begins anew, for all threads
        (site, end): transformers.TrainingArguments(
            output_dir=str(kits.kits.parent / "trainers" / site),
            num_train_epochs=end,
            max_grad_norm=0,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        for site in SITES
        for _, end in lives(schedule, site)
    }
    return run_trainers(partial(fit_transformers, arguments), kits, task, schedule)


def fit_transformers(arguments: Any, task: TorchDigits, session: Session, end: int) -> State:
    network, life = task.network(), session.life
    optimizer = task.optimizer(network)
    trainer = Trainer(
        network,
        arguments[life.site, end],
        train_dataset=task.loader(life.site).dataset,
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)),
        callbacks=[Told(life), secagg.integrations.transformers.SecAggCallback(session.kit, session)],
    )
    trainer.loader = task.loader(life.site)
    trainer.train()
    return network.state_dict()


class Trainer(transformers.Trainer):
    """Has the loader of the task, which shuffles nothing."""

    loader: Any

    def get_train_dataloader(self) -> Any:
        return self.loader


class Told(transformers.TrainerCallback):
    def __init__(self, life: Life) -> None:
        self._life = life

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self._life.begin(others["model"])

    def on_epoch_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self._life.end(others["model"])


def run_lightning(kits: Federation, task: Task, schedule: Sequence[Turn]) -> Run:
    return run_trainers(fit_lightning, kits, task, schedule)


def fit_lightning(task: TorchDigits, session: Session, end: int) -> State:
    module, life = Module(task), session.life
    trainer = pl.Trainer(
        max_epochs=end,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=Path(life.folder.with_name(f"{life.site}-trainer")),
        callbacks=[Heard(life), secagg.integrations.lightning.SecAggCallback(session.kit, session)],
    )
    trainer.fit(module, task.loader(life.site))
    return module.state_dict()


class Module(pl.LightningModule):
    """The task's network, its tensors under the same names."""

    def __init__(self, task: TorchDigits) -> None:
        super().__init__()
        self._task = task
        for name, child in task.network().named_children():
            self.add_module(name, child)

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        scores = batch["image"]
        for child in self.children():
            scores = child(scores)
        return torch.nn.functional.cross_entropy(scores, batch["label"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self._task.optimizer(self)


class Heard(pl.Callback):
    def __init__(self, life: Life) -> None:
        self._life = life

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._life.begin(module)

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *others: Any) -> None:
        if trainer.is_last_batch:
            self._life.end(module)
