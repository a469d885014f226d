"""The plain loop whose training is a MONAI trainer with the handler."""

from __future__ import annotations

from collections.abc import Sequence

import by_loop
from provisioned import Federation
from schedule import Run, Task, Turn
from tasks import TorchTask

import secagg
from secagg.integrations.monai import SecAggHandler
from secagg.site import GlobalModel


def encrypt(run: Run, task: Task, site: str, model: GlobalModel) -> secagg.Update:
    assert isinstance(task, TorchTask)
    network, handler = task.network(), SecAggHandler(model, weight=task.weights[site])
    before, round = model.state, model.round
    task.trainer(network, site, round, handler).run()
    run.saw(site, round, before, network.state_dict())
    assert handler.update is not None
    return handler.update


def run_monai(kits: Federation, task: Task, schedule: Sequence[Turn]) -> Run:
    return by_loop.run_loop(kits, task, schedule, encrypt)
