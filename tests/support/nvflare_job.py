"""A job of NVFlare's in one process: its own client runner and contexts, and what it sends goes through its FOBS.

Left out are cells, processes and the controller, which the simulator has.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nvflare.apis.client import Client
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.executor import Executor
from nvflare.apis.filter import Filter
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext, FLContextManager
from nvflare.apis.shareable import Shareable
from nvflare.apis.workspace import Workspace
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.decomposers import common_decomposers
from nvflare.app_common.utils.fl_model_utils import FLModelUtils
from nvflare.fuel.utils import fobs
from nvflare.private.fed.client.client_engine_executor_spec import TaskAssignment
from nvflare.private.fed.client.client_runner import ClientRunner, ClientRunnerConfig, TaskRouter

from secagg.integrations.nvflare import (
    SecAggAggregator,
    SecAggDecryptor,
    SecAggEncryptor,
    SecAggFinal,
    SecAggPersistor,
)

common_decomposers.register()  # as its processes do

JOB = "job"

SITES = ("site-1", "site-2", "site-3")

FLASHE = {"lib": "flashe", "config": {"value_bits": 16, "rounding": "nearest"}}

AGGREGATION = {"min_clients": 2, "max_clients": 5, "max_abs": 1.0, "max_weight": 3, "precision": "fixed"}

#: What a script makes of the global model, metrics included.
Script = Callable[[FLModel], FLModel]


def first_model() -> dict[str, Any]:
    """Return a model with an integer tensor, as BatchNorm has one."""
    return {
        "layer.weight": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3),
        "layer.bias": np.zeros(2, np.float32),
        "num_batches_tracked": np.array(0),
    }


class Engine:
    """What components ask NVFlare's engines for."""

    def __init__(self, workspace: Path, name: str, kit: Path | None) -> None:
        for folder in ("startup", "local", JOB, f"{JOB}/app_{name}/config"):
            (workspace / folder).mkdir(parents=True, exist_ok=True)
        if kit is not None:
            (workspace / "startup" / "secagg").symlink_to(kit, target_is_directory=True)
        self.workspace = Workspace(str(workspace), name)
        self.clients: list[Client] = []
        self.components: dict[str, Any] = {}
        self.contexts = FLContextManager(self, name, JOB)

    def get_workspace(self) -> Workspace:
        return self.workspace

    def get_clients(self) -> list[Client]:
        return self.clients

    def get_component(self, name: str) -> Any:
        return self.components.get(name)

    def get_cell(self) -> None:
        return None

    def fire_event(self, event: str, fl_ctx: FLContext) -> None:
        pass

    def register_aux_message_handler(self, **_: object) -> None:
        pass

    def new_context(self) -> FLContext:
        return self.contexts.new_context()


class Server:
    """The server of a job: persistor and aggregator, called as the FedAvg controller calls them."""

    def __init__(
        self,
        workspace: Path,
        kit: Path | None,
        first: dict[str, Any],
        clients: Sequence[str],
        metrics: Sequence[str] = (),
    ) -> None:
        self.engine = Engine(workspace, "server", kit)
        self.engine.clients = [Client(name, name) for name in clients]
        config = Path(self.engine.workspace.get_app_config_dir(JOB))
        np.savez(config / "first.npz", **first)
        self.fl_ctx = self.engine.new_context()
        self.persistor, self.aggregator = SecAggPersistor("first.npz", metrics), SecAggAggregator()
        self.engine.components["persistor"] = self.persistor
        self.aggregator.fl_ctx = self.fl_ctx
        learnable = self.persistor.load_model(self.fl_ctx)
        self.model = FLModel(params_type="FULL", params=learnable["weights"], meta=learnable["meta"])
        self.round = 0

    @property
    def folder(self) -> Path:
        return Path(self.engine.workspace.get_run_dir(JOB))

    def task(self) -> bytes:
        """Return what all sites get."""
        self.model.current_round = self.round
        return fobs.dumps(FLModelUtils.to_shareable(self.model))

    def accept(self, client: str, reply: bytes) -> None:
        """Take what a client has sent; what is refused is raised."""
        model = FLModelUtils.from_shareable(fobs.loads(reply))
        model.meta["client_name"] = client
        self.aggregator.accept_model(model)

    def finish(self) -> None:
        self.model = FLModelUtils.update_model(self.model, self.aggregator.aggregate_model())
        self.persistor.save_model({}, self.fl_ctx)
        self.aggregator.reset_stats()
        self.round += 1


class Trainer(Executor):
    """Runs a script on each task."""

    def __init__(self, script: Callable[[Shareable], Shareable]) -> None:
        super().__init__()
        self.script = script

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: object) -> Shareable:
        return self.script(shareable)


class Site:
    """A site of a job: NVFlare's client runner with our filters. Made again, it is a new process of the same job."""

    def __init__(
        self,
        workspace: Path,
        name: str,
        kit: Path | None,
        data_filters: Sequence[Filter] | None = None,
        result_filters: Sequence[Filter] | None = None,
    ) -> None:
        self.engine = Engine(workspace, name, kit)
        data = [SecAggDecryptor()] if data_filters is None else list(data_filters)
        results = [SecAggEncryptor()] if result_filters is None else list(result_filters)
        self.router = TaskRouter()
        self.router.add_executor(["secagg_final"], SecAggFinal())
        tasks = ("train", "secagg_final")
        config = ClientRunnerConfig(
            self.router, {f"{task}/in": data for task in tasks}, {f"{task}/out": results for task in tasks}
        )
        self.runner = ClientRunner({}, config, JOB, self.engine)  # type: ignore[arg-type]
        self.name = name
        self.scope: object = None

    @property
    def folder(self) -> Path:
        return Path(self.engine.workspace.get_run_dir(JOB))

    def run(self, task: bytes, script: Callable[[Shareable], Shareable], name: str = "train") -> Shareable:
        """Return what the client runner sends for a task."""
        self.router.task_table["train"] = Trainer(script)
        peer = FLContextManager(None, "server", JOB).new_context()
        with self.engine.new_context() as fl_ctx:
            fl_ctx.set_peer_context(peer)
            fl_ctx.set_prop(FLContextKey.RUNNER, self.runner, private=True, sticky=False)
            if self.scope is not None:
                fl_ctx.set_prop(FLContextKey.SCOPE_OBJECT, self.scope, private=True, sticky=False)
            return self.runner._process_task(TaskAssignment(name, "id", fobs.loads(task)), fl_ctx)

    def train(self, task: bytes, script: Script) -> bytes:
        """Return the reply to a task, as it goes over the wire."""
        return fobs.dumps(
            self.run(task, lambda data: FLModelUtils.to_shareable(script(FLModelUtils.from_shareable(data))))
        )


def scope(**filters: dict[str, list[Filter]]) -> types.SimpleNamespace:
    """Return a scope of privacy.json."""
    empty: dict[str, list[Filter]] = {"in": [], "out": []}
    return types.SimpleNamespace(**({"task_data_filters": empty, "task_result_filters": empty} | filters))


def adds(delta: dict[str, float], weight: float = 1, metrics: dict[str, float] | None = None) -> Script:
    """Return a script that adds a number to each tensor that is named; integers count up."""

    def script(model: FLModel) -> FLModel:
        params = {
            name: value + np.asarray(delta.get(name, 0), value.dtype)
            if value.dtype.kind == "f"
            else value + np.ones_like(value)
            for name, value in model.params.items()
        }
        return FLModel(
            params_type="FULL", params=params, metrics=metrics, meta={"NUM_STEPS_CURRENT_ROUND": weight, "secret": "x"}
        )

    return script


def params_of(reply: bytes | Shareable) -> dict[str, Any]:
    found: dict[str, Any] = from_shareable(fobs.loads(reply) if isinstance(reply, bytes) else reply).data
    return found


def reply_of(params: dict[str, Any]) -> bytes:
    """Return a reply that holds what is given, as a client may send it."""
    return fobs.dumps(DXO(DataKind.WEIGHTS, params).to_shareable())
