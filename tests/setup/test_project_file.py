"""project.yaml: what is read from it, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from provisioned import PROJECT

import secagg
from secagg.config import Config
from secagg.errors import ConfigError, FormatError
from secagg.setup.project_file import ProjectFile
from secagg.site import GlobalModel


def load(folder: Path, data: object) -> ProjectFile:
    path = folder / "project.yaml"
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data), encoding="utf-8")
    return ProjectFile.load(path)


def test_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "shapes.yaml").write_text(
        "{conv.weight: [2, 1, 3, 3, 3], steps: {shape: [], dtype: int64}, fc.w: [4, 5]}"
    )
    file = load(tmp_path, PROJECT | {"days": 30, "model": "shapes.yaml", "encrypt": "conv"})
    assert (file.name, file.sites, file.hosts, file.days) == (
        "brain",
        ("a", "b", "c"),
        ("fl.example.org", "10.0.0.7"),
        30,
    )
    own = {"he": PROJECT["he"], "aggregation": PROJECT["aggregation"], "encrypt": "conv"}
    assert file.config == Config.from_dict(own)
    assert file.layout is not None
    roles = {spec.name: spec.role for spec in file.layout.tensors}
    assert roles == {"conv.weight": "encrypted", "steps": "local", "fc.w": "clear"}


@pytest.mark.parametrize("preset", ["exact", "smallest"])
def test_no_number_of_precision_is_needed(tmp_path: Path, preset: str) -> None:
    (tmp_path / "shapes.yaml").write_text("{conv.weight: [2, 1, 3, 3, 3], conv.bias: [2]}")
    plain = {"he": {"preset": preset}, "aggregation": {"min_clients": 3, "max_clients": 5}}
    file = load(tmp_path, PROJECT | plain | {"model": "shapes.yaml", "encrypt": "conv"})
    assert file.config.aggregation.to_dict() == {
        "min_clients": 3,
        "max_clients": 5,
        "precision": "auto",
        "max_abs": None,
        "max_weight": None,
    }
    assert file.layout is not None
    assert [spec.role for spec in file.layout.tensors] == ["encrypted", "clear"]
    previous = plain | {"aggregation": {"min_clients": 3, "precision": "previous", "max_weight": 500}}
    assert load(tmp_path, PROJECT | previous).config.aggregation.precision == "previous"


def test_what_may_be_left_out(tmp_path: Path) -> None:
    file = load(tmp_path, PROJECT)
    assert (file.days, file.layout) == (365, None)


def test_the_model_that_all_begin_from(tmp_path: Path) -> None:
    np.savez(tmp_path / "initial.npz", w=np.arange(3, dtype=np.float32), steps=np.array(4))
    file = load(tmp_path, PROJECT | {"initial": "initial.npz"})
    assert file.layout is not None
    assert file.initial is not None
    assert [spec.name for spec in file.layout.tensors] == list(file.initial) == ["w", "steps"]
    (tmp_path / "shapes.yaml").write_text("{w: [3]}")
    with pytest.raises(ConfigError, match="has both 'model' and 'initial'"):
        load(tmp_path, PROJECT | {"initial": "initial.npz", "model": "shapes.yaml"})
    with pytest.raises(FormatError, match="is a list of shapes; values are read from"):
        load(tmp_path, PROJECT | {"initial": "shapes.yaml"})


@pytest.mark.parametrize("key", ["model", "initial"])
def test_a_file_that_has_not_the_order_of_the_network(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"{key}: .*model\.safetensors has not the network's order of tensors"):
        load(tmp_path, PROJECT | {key: "model.safetensors"})


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": (
        {"site": ["a"]},
        "unknown key 'site'; it knows project, hosts, sites, days, model, initial, task, storage, he",
    ),
    "unknown backend": ({"he": {"lib": "tenseel"}}, "tenseel"),
    "unknown number": ({"aggregation": {"min_client": 3}}, "unknown key 'min_client'"),
    "name of the project": ({"project": "brain tumours"}, "project name 'brain tumours': use letters"),
    "no name": ({"project": ""}, "project: '' is not text"),
    "number as a name": ({"project": 7}, "project: 7 is not text; put it in quotes"),
    "sites as text": ({"sites": "a b c"}, "sites is 'a b c'; give a list"),
    "site that is a number": ({"sites": ["a", "b", 3]}, "sites: 3 is not text; put it in quotes"),
    "site twice": ({"sites": ["a", "b", "c", "a"]}, "site 'a' stands twice"),
    "storage as text": ({"storage": "bucket.example.org"}, "storage is 'bucket.example.org'; give a list"),
    "storage with a scheme": ({"storage": ["https://bucket.example.org"]}, "write host or host:port in lower case"),
    "site called server": ({"sites": ["a", "b", "server"]}, "a site cannot be called 'server'"),
    "site that leads elsewhere": ({"sites": ["a", "b", "../c"]}, "'../c'"),
    "site of dots": ({"sites": ["a", "b", ".."]}, "'..'"),
    "no sites": ({"sites": []}, "0 sites can never be the 3 of aggregation.min_clients"),
    "too few sites": ({"sites": ["a", "b"]}, "2 sites can never be the 3 of aggregation.min_clients"),
    "too many sites": ({"sites": list("abcdef")}, "6 sites are more than aggregation.max_clients 5"),
    "hosts as text": ({"hosts": "fl.example.org"}, "hosts is 'fl.example.org'; give a list such as .fl.example.org."),
    "host with a port": (
        {"hosts": ["fl.example.org:8443"]},
        "host 'fl.example.org:8443': give the name of a host, in A",
    ),
    "host with a scheme": ({"hosts": ["https://fl.example.org"]}, "host 'https://fl.example.org'"),
    "host of other letters": ({"hosts": ["hôte"]}, "host 'hôte'"),
    "host of four large numbers": ({"hosts": ["10.0.0.999"]}, "host '10.0.0.999'"),
    "host with a space": ({"hosts": ["a", "b c"]}, "host 'b c'"),
    "long host": ({"hosts": ["a." * 127]}, "host 'a.a."),
    "no days": ({"days": 0}, "days is 0; kits are valid for 1 to 36500 days"),
    "many days": ({"days": 10**9}, "days is 1000000000"),
    "days as text": ({"days": "30"}, "days is '30'"),
    "days as truth": ({"days": True}, "days is True"),
    "pattern without a tensor": (
        {"model": "shapes.yaml", "encrypt": {"include": ["nothing.*"]}},
        "does not fit the model .*: encrypt: pattern 'nothing.",
    ),
    "bound without a tensor": (
        {"model": "shapes.yaml", "aggregation": {"max_abs": {"default": 1.0, "x.*": 2.0}}},
        "does not fit the model .*: aggregation.max_abs: pattern 'x.",
    ),
    "tensor without a bound": (
        {"model": "shapes.yaml", "aggregation": {"max_abs": {"conv*": 1.0}}},
        "does not fit the model .*: aggregation.max_abs has no pattern for tensor 'w'",
    ),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_what_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    (tmp_path / "shapes.yaml").write_text("{w: [3], conv: [2, 1, 3]}")
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, PROJECT | change)


@pytest.mark.parametrize("key", ["project", "hosts", "sites", "he"])
def test_what_is_missing(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=f"'{key}'"):
        load(tmp_path, {name: value for name, value in PROJECT.items() if name != key})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "write a block of keys"),
        ("# later\n", "is empty; `secagg provision --help`"),
        ("sites: [a\n", "is not YAML"),
        ("days: 1\ndays: 2\n", "'days' twice"),
    ],
)
def test_what_is_no_project(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, text)


def test_a_model_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"model\.pt"):
        load(tmp_path, PROJECT | {"model": "model.pt"})
    with pytest.raises(ConfigError, match="cannot read"):
        ProjectFile.load(tmp_path / "other.yaml")


def test_a_model_of_16_bit_floats_is_sent_as_float32(tmp_path: Path) -> None:
    """As `GlobalModel` holds it: what is provisioned is what sites find."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).to(torch.bfloat16)
    network.add_module("tied", network[0])
    network[0].bias.data = network[0].bias.data.half()
    torch.save(network.state_dict(), tmp_path / "initial.pt")
    file = load(tmp_path, PROJECT | {"initial": "initial.pt"})
    assert file.layout is not None
    assert {spec.dtype for spec in file.layout.tensors if spec.role != "local"} == {"float32"}
    client = secagg.Client(file.config, secagg.generate_keys(file.config).client, "a")
    model = GlobalModel(client, network.state_dict())
    assert file.layout.difference(model.layout) is None
    assert file.base == model.base
    (tmp_path / "shapes.yaml").write_text("{w: {shape: [3], dtype: float16}, v: {shape: [2], dtype: float64}}")
    file = load(tmp_path, PROJECT | {"model": "shapes.yaml"})
    assert file.layout is not None
    assert [spec.dtype for spec in file.layout.tensors] == ["float32", "float64"]


def test_a_task_that_sites_agree_on(tmp_path: Path) -> None:
    task = {"patch": [96, 96, 64], "learning_rate": 0.001, "labels": ["background", "spleen"]}
    assert load(tmp_path, PROJECT | {"task": task}).task == task
    assert load(tmp_path, PROJECT).task is None
    for wrong in ([], None, {"patch": None}, {"two words": 1}, {"window": [float("nan")]}, {"a": {"b": 1}}):
        with pytest.raises(ConfigError, match="task"):
            load(tmp_path, PROJECT | {"task": wrong})


def test_hosts_of_a_bucket(tmp_path: Path) -> None:
    hosts = ["bucket.example.org", "127.0.0.1:9000"]
    assert load(tmp_path, PROJECT | {"storage": hosts}).storage == tuple(hosts)
    assert load(tmp_path, PROJECT).storage == ()
