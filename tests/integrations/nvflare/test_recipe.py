"""The job that the recipe makes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import nvflare_script
import pytest
from nvflare.apis.fl_exception import UnsafeComponentError
from nvflare.app_common.default_component_policy import DEFAULT_CLASS_ALLOW_LIST
from nvflare.app_common.widgets.component_path_authorizer import CLASS_ALLOW_LIST, ComponentPathAuthorizer
from nvflare_job import first_model

from secagg.integrations.nvflare import SecAggFedAvgRecipe

SCRIPT = nvflare_script.__file__


@pytest.fixture
def app(tmp_path: Path) -> Path:
    recipe = SecAggFedAvgRecipe(
        model=nvflare_script.network(), min_clients=3, train_script=SCRIPT, metrics=["accuracy"]
    )
    recipe.export(str(tmp_path / "jobs"))
    return tmp_path / "jobs" / "fedavg_secagg" / "app"


def config(app: Path, side: str) -> Any:
    return json.loads((app / "config" / f"config_fed_{side}.json").read_text())


def paths(found: Any) -> Iterator[str]:
    """Return the classes that a configuration names, however deep."""
    if isinstance(found, dict):
        if "path" in found:
            yield found["path"]
        for value in found.values():
            yield from paths(value)
    elif isinstance(found, list):
        for value in found:
            yield from paths(value)


def test_no_source_but_the_script_travels(app: Path) -> None:
    assert [path.name for path in (app / "custom").rglob("*") if path.is_file()] == ["nvflare_script.py"]


def test_tasks_of_a_site_all_have_filters(app: Path) -> None:
    client = config(app, "client")
    tasks = {task for entry in client["executors"] for task in entry["tasks"]}
    assert tasks == {"train", "secagg_final"}
    for kind, name in (("task_data_filters", "SecAggDecryptor"), ("task_result_filters", "SecAggEncryptor")):
        (chain,) = client[kind]
        assert set(chain["tasks"]) == tasks
        assert [entry["path"].rpartition(".")[2] for entry in chain["filters"]] == [name]
        assert [entry["args"] for entry in chain["filters"]] == [{}]


def test_rounds_are_of_all_clients(app: Path) -> None:
    (workflow,) = config(app, "server")["workflows"]
    assert workflow["path"] == "secagg.integrations.nvflare.server.SecAggFedAvg"
    assert workflow["args"]["num_clients"] == 0
    assert workflow["args"]["ignore_result_error"] is True


def test_first_model_is_in_the_job(app: Path) -> None:
    with np.load(app / "config" / "first.npz") as model:
        assert list(model) == list(nvflare_script.network().state_dict())


@pytest.mark.parametrize("kind", [str, Path])
def test_first_model_may_be_on_the_server(tmp_path: Path, kind: Any) -> None:
    recipe = SecAggFedAvgRecipe(model=kind("/models/first.pt"), min_clients=3, train_script=SCRIPT)
    recipe.export(str(tmp_path))
    app = tmp_path / "fedavg_secagg" / "app"
    assert not list(app.rglob("*.npz"))
    persistor = next(c for c in config(app, "server")["components"] if c["id"] == "persistor")
    assert persistor["args"] == {"model": "/models/first.pt"}


def test_first_model_may_be_arrays(tmp_path: Path) -> None:
    recipe = SecAggFedAvgRecipe(model=first_model(), min_clients=3, train_script=SCRIPT)
    recipe.export(str(tmp_path))
    with np.load(tmp_path / "fedavg_secagg" / "app" / "config" / "first.npz") as model:
        assert {name: model[name].dtype for name in model} == {n: value.dtype for n, value in first_model().items()}


@pytest.mark.parametrize("side", ["client", "server"])
def test_sites_without_byoc_list_one_prefix(app: Path, tmp_path: Path, side: str) -> None:
    """In a job without copied source, a site takes classes that it lists; the executor of a script is not ours."""
    ours = [path for path in paths(config(app, side)) if not path.startswith("nvflare.")]
    assert ours
    assert all(path.startswith("secagg.integrations.nvflare.") for path in ours)
    resources = tmp_path / "resources.json"
    workspace = SimpleNamespace(get_resources_file_path=lambda: str(resources))
    for more, allowed in (["secagg.integrations.nvflare"], True), ([], False):
        resources.write_text(json.dumps({CLASS_ALLOW_LIST: [*DEFAULT_CLASS_ALLOW_LIST, *more]}))
        for path in ours:
            if allowed:
                ComponentPathAuthorizer().authorize_component_config({"path": path}, workspace=workspace)
            else:
                with pytest.raises(UnsafeComponentError):
                    ComponentPathAuthorizer().authorize_component_config({"path": path}, workspace=workspace)
