"""`SecureSite` behind the filters of a `MonaiAlgo` at each site, and a `Relay` in the program of the server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from monai.bundle import BundleWorkflow
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.fl.client import MonaiAlgo
from monai.fl.utils.exchange_object import ExchangeObject
from provisioned import Federation
from schedule import Run, Task, Turn, arrays
from tasks import TorchTask

from secagg.integrations.monai import to_weights
from secagg.server import Relay


def run_filters(kits: Federation, task: Task, schedule: Sequence[Turn]) -> Run:
    assert isinstance(task, TorchTask)
    run, initial = Run(), task.initial()
    relay = Relay(kits["server"], initial)
    since: dict[str, int] = {}  # what the server knows of each site
    algos: dict[str, MonaiAlgo] = {}

    def handed_out(site: str, store: bool = False) -> ExchangeObject:
        return ExchangeObject(weights=to_weights(relay.handout(since.get(site), store=store), initial))

    def started(site: str) -> MonaiAlgo:
        algos[site] = algos.get(site) or make_algo(kits, task, site)
        return algos[site]

    for round, turn in enumerate(schedule):
        storing = turn.sites[0] if relay.wants_model else None
        for site, data in {site: handed_out(site, site == storing) for site in turn.trains}.items():
            algo = started(site)
            algo.evaluate(data)  # of the same global model, before it is trained
            begun = arrays(algo.evaluator.network.state_dict())
            algo.trainer = task.trainer(algo.trainer.network, site, round)
            algo.train(data)
            run.saw(site, round, begun, algo.trainer.network.state_dict())
            sent = algo.get_weights()
            if site in turn.restarts:
                del algos[site]
            if site in turn.sites:
                relay.add(
                    *(sent.weights[name].tobytes() for name in ("secagg", "secagg.model") if name in sent.weights)
                )
                since[site] = round
        relay.finish()
    for site in {site: None for turn in schedule for site in turn.trains}:
        algo = started(site)
        algo.evaluate(handed_out(site))
        run.final[site] = arrays(algo.evaluator.network.state_dict())
    return run


def make_algo(kits: Federation, task: TorchTask, site: str) -> MonaiAlgo:
    """A client's program, with the file of filters that its site has written."""
    folder = kits.kits.parent / "bundles" / site
    folder.mkdir(parents=True, exist_ok=True)
    filters = {
        "site": {
            "_target_": "secagg.integrations.monai.SecureSite",
            "kit": str(kits[site]),
            "weight": task.weights[site],
        },
        "pre_filters": ["$@site.open"],
        "post_weight_filters": ["$@site.seal"],
        "post_evaluate_filters": ["$@site.metrics"],
    }
    (folder / "filters.json").write_text(json.dumps(filters))
    workflow = Workflow(task, site)
    algo = MonaiAlgo(
        str(folder), config_filters_filename="filters.json", train_workflow=workflow, eval_workflow=workflow
    )
    algo.initialize()
    return algo


class Workflow(BundleWorkflow):
    """A bundle without files: the engines of a task."""

    def __init__(self, task: TorchTask, site: str) -> None:
        super().__init__(workflow_type="train")
        self._engines = {"trainer": task.trainer(task.network(), site, 0), "evaluator": make_evaluator(task.network())}

    def initialize(self) -> None:
        pass

    def run(self) -> None:
        pass

    def finalize(self) -> None:
        pass

    def _get_property(self, name: str, property: dict[str, Any]) -> Any:
        return self._engines.get(name)

    def _set_property(self, name: str, property: dict[str, Any], value: Any) -> None:
        pass


def make_evaluator(network: torch.nn.Module) -> SupervisedEvaluator:
    """Evaluates nothing: it holds the global model."""
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset([{"image": 0.0, "label": 0.0}])),
        network=network,
        iteration_update=lambda engine, batch: {},
    )
