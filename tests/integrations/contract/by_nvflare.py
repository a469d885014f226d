"""NVFlare's FedAvg, with our filters, aggregator and persistor, in one process; tasks and results go through FOBS."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import nvflare_script
import torch
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FilterKey, FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContextManager
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.apis.utils.task_utils import apply_filters
from nvflare.apis.workspace import Workspace
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.decomposers import common_decomposers
from nvflare.app_common.utils.fl_model_utils import FLModelUtils
from nvflare.fuel.utils import fobs
from provisioned import Federation
from schedule import SITES, Arrays, Run, State, Task, Turn, arrays
from tasks import TorchTask

from secagg.integrations.nvflare import (
    SecAggAggregator,
    SecAggDecryptor,
    SecAggEncryptor,
    SecAggFedAvg,
    SecAggFinal,
    SecAggPersistor,
)

JOB, DATA, RESULTS = "job", "task_data_filters", "task_result_filters"


def run_nvflare(kits: Federation, task: Task, schedule: Sequence[Turn]) -> Run:
    common_decomposers.register()
    run = Run()
    clients = {site: Client(kits, task, run, site) for site in SITES}
    workspace = make_workspace(kits, "server")
    config = Path(workspace.get_app_config_dir(JOB))
    config.mkdir(parents=True)
    np.savez(config / "first.npz", **arrays(task.initial()))
    components = {AppConstants.DEFAULT_PERSISTOR_ID: SecAggPersistor("first.npz")}
    controller = Controller(clients, schedule, aggregator=SecAggAggregator())
    engine = SimpleNamespace(
        get_workspace=lambda: workspace,
        get_component=components.get,
        get_clients=lambda: [SimpleNamespace(name=site) for site in SITES],
        fire_event=lambda event, context: None,
    )
    context = FLContextManager(engine, "server", JOB).new_context()
    controller.aggregator.handle_event(EventType.START_RUN, context)
    controller.start_controller(context)
    controller.abort_signal = Signal()
    controller.run()
    return run


class ScriptTask:
    """What the job that the tests of NVFlare submit trains."""

    weights: Mapping[str, int] = {"site-1": 4, "site-2": 8, "site-3": 14}  # steps

    def initial(self) -> State:
        return nvflare_script.network().state_dict()

    def train(self, site: str, round: int, state: State) -> State:
        network = nvflare_script.network()
        network.load_state_dict(dict(state))
        _, steps = nvflare_script.train(network, site, round)
        assert steps == self.weights[site]
        return network.state_dict()


def run_simulator(kits: Federation, folder: Path) -> dict[str, Arrays]:
    """Run the job in NVFlare's simulator; return the last global model of each site."""
    (folder / "notes").mkdir(parents=True)
    support, sites = Path(nvflare_script.__file__).parent, ScriptTask.weights
    arguments = ("simulator", folder / "work", folder / "notes", str(len(sites)))
    done = subprocess.run(
        [sys.executable, support / "nvflare_submit.py", *arguments],
        cwd=folder,
        env=os.environ
        | {"SECAGG_SIMULATION": "1", "SECAGG_KIT": f"{kits.kits}/{{site}}"}
        | {"PYTHONPATH": os.pathsep.join([str(support.parents[1]), str(support)])},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    final = {}
    for site in sites:
        with np.load(folder / "work" / "fedavg_secagg" / site / "simulate_job" / "global_model.npz") as model:
            final[site] = dict(model)
    return final


class Controller(SecAggFedAvg):
    """Has clients do a task when it is sent; those that are away send nothing, and what others send may be lost."""

    def __init__(self, clients: dict[str, Client], schedule: Sequence[Turn], **arguments: Any) -> None:
        super().__init__(num_rounds=len(schedule), num_clients=0, ignore_result_error=True, **arguments)
        self._clients, self._schedule = clients, schedule

    def send_model(
        self, task_name: str = "", data: Any = None, callback: Callable[[FLModel], Any] = id, **others: Any
    ) -> None:
        turn = self._schedule[self.current_round]
        sent = fobs.dumps(FLModelUtils.to_shareable(data))
        for site in turn.trains:
            reply = fobs.loads(self._clients[site].do(task_name, fobs.loads(sent)))
            if site in turn.restarts:
                self._clients[site].restart()
            assert reply.get_return_code() == ReturnCode.OK
            result = FLModelUtils.from_shareable(reply)
            result.meta["client_name"] = site
            if site in turn.sites:
                callback(result)

    def send_model_and_wait(self, task_name: str = "", data: Any = None, **others: Any) -> list[FLModel]:
        sent = fobs.dumps(FLModelUtils.to_shareable(data))
        for client in self._clients.values():
            client.do(task_name, fobs.loads(sent))
        return []

    def get_num_standing_tasks(self) -> int:
        return 0


class Client:
    """A client of a job: its filters, and what is between them."""

    def __init__(self, kits: Federation, task: Task, run: Run, site: str) -> None:
        self._task, self._run, self._site = task, run, site
        self._workspace = make_workspace(kits, site)
        self.restart()

    def restart(self) -> None:
        """Begin a process: nothing is left but files."""
        data, results, tasks = [SecAggDecryptor()], [SecAggEncryptor()], ("train", "secagg_final")
        self._runner = SimpleNamespace(
            task_data_filters={f"{name}{FilterKey.DELIMITER}{FilterKey.IN}": data for name in tasks},
            task_result_filters={f"{name}{FilterKey.DELIMITER}{FilterKey.OUT}": results for name in tasks},
        )
        engine = SimpleNamespace(get_workspace=lambda: self._workspace)
        self._manager = FLContextManager(engine, self._site, JOB, private_stickers={FLContextKey.RUNNER: self._runner})

    def do(self, name: str, data: Shareable) -> bytes:
        """Do a task as a ClientRunner does."""
        context = self._manager.new_context()
        context.set_prop(FLContextKey.TASK_NAME, name, private=True, sticky=False)
        data = apply_filters(DATA, data, context, self._runner.task_data_filters, name, FilterKey.IN)
        if name == AppConstants.TASK_TRAIN:
            reply = self._train(data)
        else:
            reply = SecAggFinal().execute(name, data, context, Signal())
            with np.load(Path(self._workspace.get_run_dir(JOB), "global_model.npz")) as kept:
                self._run.final[self._site] = dict(kept)
        return fobs.dumps(apply_filters(RESULTS, reply, context, self._runner.task_result_filters, name, FilterKey.OUT))

    def _train(self, data: Shareable) -> Shareable:
        """Do what a script does."""
        model: State = from_shareable(data).data
        if isinstance(self._task, TorchTask):
            model = {name: torch.from_numpy(np.array(value)) for name, value in model.items()}
        local = self._run.train(self._task, self._site, data.get_header(AppConstants.CURRENT_ROUND), model)
        steps = {MetaKey.NUM_STEPS_CURRENT_ROUND: self._task.weights[self._site]}
        return DXO(DataKind.WEIGHTS, arrays(local), steps).to_shareable()


def make_workspace(kits: Federation, name: str) -> Workspace:
    """A party's folder as NVFlare has it, with its kit where `nvflare provision` puts it."""
    root = kits.kits.parent / "nvflare" / name
    for folder in ("startup", "local", JOB):
        (root / folder).mkdir(parents=True)
    (root / "startup" / "secagg").symlink_to(kits[name])
    return Workspace(str(root), name)
