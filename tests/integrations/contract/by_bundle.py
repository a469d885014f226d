"""What `federate` does with the engines of a bundle: a thread for each site, and our server over gRPC."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from by_trainers import Life, Session, run_trainers
from ignite.engine import Engine, Events
from provisioned import Federation
from schedule import Run, State, Task, Turn
from tasks import TorchDigits

from secagg.integrations.monai.bundle_task import BundleTask
from secagg.site import run_task


def run_bundle(kits: Federation, task: Task, schedule: Sequence[Turn]) -> Run:
    return run_trainers(fit, kits, task, schedule)


def fit(task: TorchDigits, session: Session, end: int) -> State:
    life, network = session.life, task.network()
    trainer = task.trainer(network, life.site, life.round, Heard(life))
    run_task(session.kit, lambda kit, layout: session, BundleTask(trainer, None, task.weights[life.site]), end)
    return network.state_dict()


class Heard:
    """One of the bundle's own handlers."""

    def __init__(self, life: Life) -> None:
        self._life = life

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(Events.STARTED, partial(self._tell, self._life.begin))
        engine.add_event_handler(Events.COMPLETED, partial(self._tell, self._life.end))

    def _tell(self, told: Any, engine: Engine) -> None:
        told(engine.network)
