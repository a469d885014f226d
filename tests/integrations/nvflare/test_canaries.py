"""What we use of NVFlare is where it was, and as it was: what a release has moved fails here by its name."""

from __future__ import annotations

import ast
import inspect
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import pytest
from nvflare.apis.fl_constant import FLMetaKey
from nvflare.apis.workspace import Workspace
from nvflare.private.fed.client.client_runner import ClientRunner, ClientRunnerConfig
from nvflare.private.privacy_manager import Scope

import secagg.integrations.nvflare
from secagg.integrations.nvflare import framework

FOLDER = Path(framework.__file__).parent

NAMES = [
    (node.module, alias.name)
    for node in ast.parse(Path(framework.__file__).read_text()).body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
]

#: What is called or implemented, and with which arguments.
CALLS: list[tuple[Any, tuple[str, ...]]] = [
    (framework.DXO, ("data_kind", "data", "meta")),
    (framework.FLModel, ("params_type", "params")),
    (framework.FedJob, ("name", "min_clients")),
    (framework.FedJob.add_file_to_server, ("self", "src_path", "app_folder_type")),
    (framework.FedJob.set_app_packages, ("self", "app_packages")),
    (framework.FedJob.to_clients, ("self", "obj", "kwargs")),
    (framework.FedJob.to_server, ("self", "obj", "id", "kwargs")),
    (framework.ScriptRunner, ("script", "script_args", "framework")),
    (framework.FedAvg.send_model_and_wait, ("self", "task_name", "data")),
    (framework.FLContext.set_prop, ("self", "key", "value", "private", "sticky")),
    (framework.get_filters, ("filters_name", "fl_ctx", "config_filters", "task_name", "direction")),
    (framework.make_model_learnable, ("weights", "meta_props")),
    (framework.sign_folders, ("folder", "signing_pri_key", "signature_file")),
    (framework.Filter.process, ("self", "shareable", "fl_ctx")),
    (framework.Executor.execute, ("self", "task_name", "shareable", "fl_ctx", "abort_signal")),
    (framework.ModelPersistor.load_model, ("self", "fl_ctx")),
    (framework.ModelPersistor.save_model, ("self", "model", "fl_ctx")),
    (framework.Builder.build, ("self", "project", "ctx")),
    (framework.Recipe, ("job",)),
    (Workspace.get_run_dir, ("self", "job_id")),
    (Workspace.get_app_config_dir, ("self", "job_id")),
    (Workspace.get_startup_kit_dir, ("self",)),
]

CONSTANTS = {
    "AppConstants": ("DEFAULT_PERSISTOR_ID", "GLOBAL_MODEL", "TASK_TRAIN"),
    "CtxKey": ("ROOT_PRI_KEY",),
    "DataKind": ("METRICS", "WEIGHTS"),
    "FLContextKey": ("RUNNER", "TASK_NAME"),
    "FilterKey": ("IN", "OUT"),
    "FilterType": ("TASK_DATA", "TASK_RESULT"),
    "FrameworkType": ("PYTORCH",),
    "MetaKey": ("INITIAL_METRICS", "NUM_STEPS_CURRENT_ROUND"),
    "ModelLearnableKey": ("WEIGHTS",),
    "ParamsType": ("FULL",),
    "ProvFileName": ("SIGNATURE_JSON",),
    "ReturnCode": ("OK",),
}


def test_release() -> None:
    assert metadata.version("nvflare").startswith("2.9.")


@pytest.mark.parametrize(("module", "name"), NAMES, ids=[f"{module}.{name}" for module, name in NAMES])
def test_name(module: str, name: str) -> None:
    assert hasattr(import_module(module), name)


@pytest.mark.parametrize(("called", "arguments"), CALLS, ids=[called.__qualname__ for called, _ in CALLS])
def test_arguments(called: Any, arguments: tuple[str, ...]) -> None:
    known = list(inspect.signature(called).parameters)
    assert [name for name in known if name in arguments] == list(arguments)


def test_positions() -> None:
    for called, first in (
        (framework.DXO, ["data_kind", "data", "meta"]),
        (framework.FLModel, ["params_type", "params"]),
        (framework.ScriptRunner, ["script", "script_args"]),
        (framework.FedAvg.send_model_and_wait, ["self", "task_name", "data"]),
    ):
        assert list(inspect.signature(called).parameters)[: len(first)] == first


@pytest.mark.parametrize("owner", CONSTANTS)
def test_constants(owner: str) -> None:
    for name in CONSTANTS[owner]:
        assert hasattr(getattr(framework, owner), name)
    assert FLMetaKey.NUM_STEPS_CURRENT_ROUND == "NUM_STEPS_CURRENT_ROUND"  # what scripts write


def test_options_of_the_controller() -> None:
    controller = framework.FedAvg(num_clients=0, num_rounds=2, ignore_result_error=True)
    assert controller.num_clients == 0
    assert controller._ignore_result_error is True


def test_an_aggregator_implements_no_more() -> None:
    assert framework.ModelAggregator.__abstractmethods__ == {"accept_model", "aggregate_model", "reset_stats"}
    assert framework.ModelPersistor.__abstractmethods__ == {"load_model", "save_model"}


def test_attributes_that_the_order_of_filters_is_read_from() -> None:
    for kind in ("task_data_filters", "task_result_filters"):
        assert kind in inspect.signature(ClientRunnerConfig).parameters
        assert f"self.{kind} = config.{kind}" in inspect.getsource(ClientRunner.__init__)
        assert getattr(Scope(), kind).keys() == {framework.FilterKey.IN, framework.FilterKey.OUT}


def test_nothing_else_is_imported() -> None:
    """Framework alone names it."""
    for file in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert file.name == "framework.py" or not any(name.startswith("nvflare") for name in modules)


def test_the_folder_is_thin() -> None:
    assert sum(len(file.read_text().splitlines()) for file in FOLDER.glob("*.py")) <= 350


def test_public_names() -> None:
    for name in secagg.integrations.nvflare.__all__:
        assert getattr(secagg.integrations.nvflare, name).__name__ == name
    with pytest.raises(AttributeError, match="Missing"):
        secagg.integrations.nvflare.Missing  # noqa: B018
