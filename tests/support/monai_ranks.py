"""Two processes that train one network by gloo, as one site: started by `start`, each writes what it saw to a file.

Beside them stands another site, an idle one, in the process of rank 0, which adds up as the server does.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
RANKS = 2
ROUNDS = 2
STEPS = 3


def start(folder: Path, script: str = __file__) -> list[dict[str, Any]]:
    """Run both ranks to their ends; return what each has seen, by case."""
    environment = {"PYTHONPATH": f"{ROOT}:{Path(__file__).parent}", "PATH": "/usr/bin:/bin"}
    ranks = [
        subprocess.Popen(
            [sys.executable, script, str(rank), str(folder)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(RANKS)
    ]
    try:
        said = [process.communicate(timeout=300)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    assert [process.returncode for process in ranks] == [0] * RANKS, "\n".join(said)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


class Cases:
    """What one rank does in each case, all of which both ranks go through in this order."""

    def __init__(self, rank: int) -> None:
        from monai_sites import Sites, make_network, make_trainer

        self.rank = rank
        self.sites = Sites.make()
        self.make_network, self.make_trainer = make_network, make_trainer

    def handler(self, network: Any, sites: Any = None, **options: Any) -> Any:
        from secagg.integrations.monai import SecAggHandler

        model = (sites or self.sites).model(network) if self.rank == 0 else None
        return SecAggHandler(model, weight=4, **options)

    def distributed(self, network: Any) -> Any:
        return torch.nn.parallel.DistributedDataParallel(network)

    def failing(self, action: Callable[[], Any]) -> tuple[str, str]:
        """What it raises; the ranks still answer each other then."""
        raised: tuple[str, str] = ("", "")
        try:
            action()
        except Exception as error:  # noqa: BLE001  told, and held against what is expected
            raised = type(error).__name__, str(error)
        torch.distributed.barrier()
        return raised

    # The cases.

    def rounds(self) -> dict[str, Any]:
        """Train as one site; the network of rank 1 begins from other weights, until the handler loads."""
        from ignite.engine import Events
        from monai_sites import snapshot

        from secagg.site import network_state

        network = self.distributed(self.make_network())
        handler = self.handler(self.make_network(), calibrate=None)
        idle = self.sites.model(self.make_network(), "site-2")
        seen: dict[str, Any] = {"begun": [], "trained": [], "after": [], "round": [], "applied": [], "left": []}
        while handler.round < ROUNDS:
            seen["round"].append(handler.round)
            if self.rank:
                with torch.no_grad():
                    network.module[0].weight.add_(0.3)
                    network.module[1].num_batches_tracked.add_(9)
            trainer = self.make_trainer(network, seed(handler.round, self.rank), STEPS, train_handlers=[handler])
            attached = trainer.add_event_handler(
                Events.ITERATION_STARTED(once=1), lambda: seen["begun"].append(snapshot(network_state(network)))
            )
            trainer.run()
            attached.remove()
            seen["left"].append(len(trainer._event_handlers[Events.ITERATION_STARTED]))
            seen["trained"].append(snapshot(network_state(network)))
            aggregate = None
            if self.rank == 0:
                changed = handler.model.difference(network)
                seen.setdefault("changed", []).append(changed)
                aggregate = self.sites.aggregate(handler.update, idle.encrypt(idle.state, 4), round=handler.round)
                idle.apply(aggregate)
            assert (handler.update is None) == bool(self.rank)
            seen["applied"].append(handler.apply(aggregate))
            seen["after"].append(snapshot(network_state(network)))
        if self.rank == 0:
            seen["model"] = idle.state | {"1.num_batches_tracked": handler.model.state["1.num_batches_tracked"]}
        return seen

    def half_precision(self) -> dict[str, Any]:
        """bf16 buffers and weights travel, and are not wrapped."""
        from secagg.site import network_state

        network = self.make_network(self.rank).to(torch.bfloat16)
        handler = self.handler(self.make_network())
        handler._start(self.make_trainer(network))
        return dict(network_state(network))

    def another_model(self) -> tuple[str, str]:
        handler = self.handler(torch.nn.Linear(2, 2))
        return self.failing(self.make_trainer(self.distributed(self.make_network()), train_handlers=[handler]).run)

    def another_network(self) -> tuple[str, str]:
        network = self.make_network()
        if self.rank:
            network[3] = torch.nn.Conv3d(4, 1, 3, padding=1)
        return self.failing(self.make_trainer(network, train_handlers=[self.handler(self.make_network())]).run)

    def another_length(self) -> tuple[str, str]:
        network = self.make_network()
        if self.rank:
            network.append(torch.nn.Conv3d(1, 1, 1))
        return self.failing(self.make_trainer(network, train_handlers=[self.handler(self.make_network())]).run)

    def without_a_network(self) -> tuple[str, str]:
        trainer = self.make_trainer(self.make_network(), train_handlers=[self.handler(self.make_network())])
        if self.rank:
            del trainer.network
        return self.failing(trainer.run)

    def written(self, *ranks: int, value: float = 0.5) -> tuple[str, str]:
        """Another handler writes weights when training starts, at some ranks."""
        from ignite.engine import Events

        network = self.make_network()
        trainer = self.make_trainer(self.distributed(network), train_handlers=[self.handler(self.make_network())])

        def write() -> None:
            with torch.no_grad():
                network[0].weight.fill_(value)

        if self.rank in ranks:
            trainer.add_event_handler(Events.STARTED, write)
        return self.failing(trainer.run)

    def written_at_first(self) -> tuple[str, str]:
        return self.written(0)

    def written_at_second(self) -> tuple[str, str]:
        return self.written(1)

    def written_at_both(self) -> tuple[str, str]:
        return self.written(0, 1)

    def no_number_at_second(self) -> tuple[str, str]:
        return self.written(1, value=float("nan"))

    def out_of_range(self) -> tuple[str, str]:
        from ignite.engine import Events

        network = self.make_network()
        trainer = self.make_trainer(self.distributed(network), train_handlers=[self.handler(self.make_network())])

        def spoil() -> None:
            with torch.no_grad():
                network[3].bias.fill_(5.0)

        trainer.add_event_handler(Events.EPOCH_COMPLETED, spoil)
        return self.failing(trainer.run)

    def calibrations(self) -> list[Any]:
        """Nobody else is there, then the network is gone, then all is well: `complete` goes on with what is trained."""
        from monai_sites import Sites

        import secagg
        from secagg.errors import QuorumError

        sites = Sites.make({"preset": "smallest"}, max_abs=None)
        network, answers = self.make_network(), [QuorumError("nobody else"), OSError("network is gone"), None]
        idle = sites.model(self.make_network(), "site-2")

        def calibrate(own: secagg.Update) -> secagg.Update:
            assert self.rank == 0
            answer = answers.pop(0)
            if answer is not None:
                raise answer
            aggregator = secagg.Aggregator(sites.config, sites.keys.server, base=own.header.base, kind="calibration")
            aggregator.add(own)
            aggregator.add(idle.calibrate(idle.state, 4))
            return aggregator.finish()

        handler = self.handler(self.make_network(), sites, calibrate=calibrate)
        trainer = self.make_trainer(self.distributed(network), train_handlers=[handler])
        seen: list[Any] = [self.failing(trainer.run)]
        seen += [self.failing(lambda: handler.complete(trainer)) for _ in range(2)]
        return [*seen, handler.update is not None]

    def refused(self) -> list[Any]:
        """An aggregate that is not of this round leaves the networks as they were trained."""
        from monai_sites import snapshot

        network = self.distributed(self.make_network())
        handler = self.handler(self.make_network())
        self.make_trainer(network, train_handlers=[handler]).run()
        before, aggregate = snapshot(network.state_dict()), None
        if self.rank == 0:
            clients = [self.sites.model(self.make_network(), name) for name in ("site-2", "site-3")]
            aggregate = self.sites.aggregate(*(model.encrypt(model.state, 1) for model in clients))
        raised = self.failing(lambda: handler.apply(aggregate))
        same = all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
        return [raised, same, handler.round]

    def a_key_at_each(self) -> tuple[str, str]:
        from secagg.integrations.monai import SecAggHandler

        model = self.sites.model(self.make_network())
        return self.failing(lambda: SecAggHandler(model, weight=4))

    def a_key_at_none(self) -> tuple[str, str]:
        from secagg.integrations.monai import SecAggHandler

        return self.failing(lambda: SecAggHandler(None, weight=4))

    def a_weight_that_cannot_be(self) -> tuple[str, str]:
        from secagg.integrations.monai import SecAggHandler

        model = self.sites.model(self.make_network()) if self.rank == 0 else None
        return self.failing(lambda: SecAggHandler(model, weight=-1))


CASES = [name for name, value in vars(Cases).items() if not name.startswith("_") and callable(value)]
CASES = CASES[CASES.index("rounds") :]
CASES.remove("written")


def seed(round: int, rank: int) -> int:
    """Of the examples of a rank."""
    return 10 * round + rank


def main(rank: int, folder: Path) -> None:
    # Ignite imports torch.distributed.optim, whose modules still use TorchScript.
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", module="secagg")
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=RANKS, timeout=timedelta(seconds=60)
    )
    cases = Cases(rank)
    torch.save({name: getattr(cases, name)() for name in CASES}, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
