"""Two processes that train one network of a bundle by gloo, as one site; each writes to a file what it saw."""

from __future__ import annotations

import sys
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

RANKS = 2


def see(rank: int) -> dict[str, Any]:
    from ignite.engine import Events
    from monai_sites import make_evaluator, make_network, make_trainer, snapshot

    from secagg.errors import QuorumError, SecAggError
    from secagg.integrations.monai.bundle_task import BundleTask

    network = make_network(rank)  # those of other ranks begin elsewhere, until rank 0 has said what is trained
    trainer = make_trainer(torch.nn.parallel.DistributedDataParallel(network), seed=rank, examples=3)
    task = BundleTask(trainer, make_evaluator(network), 4)
    seen: dict[str, Any] = {"begun": [], "trained": [], "measured": [], "told": []}

    @trainer.on(Events.ITERATION_STARTED)
    def begin() -> None:
        if trainer.state.iteration % 3 == 1:
            seen["begun"].append(snapshot(network.state_dict()))

    trainer.add_event_handler(Events.COMPLETED, lambda: seen["trained"].append(snapshot(network.state_dict())))

    def work() -> dict[str, float]:
        for round in range(2):
            network.load_state_dict(make_network(5 + round).state_dict())  # a global model, at rank 0 alone
            seen["measured"].append(task.validate())
            task.train(round, lambda done, total: seen["told"].append((done, total)))
        network.load_state_dict(make_network(7).state_dict())
        return {"score": 1.0}

    def fail() -> dict[str, float]:
        raise QuorumError("nobody else came")

    seen["result"] = task.follow() if rank else task.lead(work)
    seen["final"] = snapshot(network.state_dict())
    try:
        task.follow() if rank else task.lead(fail)
    except SecAggError as error:
        seen["raised"] = f"{type(error).__name__}: {error}"
    return seen


def main(rank: int, folder: Path) -> None:
    # Ignite imports torch.distributed.optim, whose modules still use TorchScript.
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=RANKS, timeout=timedelta(seconds=60)
    )
    torch.save(see(rank), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
