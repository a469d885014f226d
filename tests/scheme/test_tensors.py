"""What is no tensor with values of its own is found by `layout`, by name and with a remedy, in torch and in NumPy."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

import secagg
from secagg.errors import LayoutError
from secagg.scheme.tensors import is_torch

CONFIG = secagg.Config.from_dict(
    {
        "he": {"lib": "flashe", "config": {"value_bits": 16}},
        "aggregation": {"min_clients": 3, "max_clients": 3, "max_abs": 2},
    }
)
SITE = secagg.Client(CONFIG, secagg.generate_keys(CONFIG).client, "site-1")


class Units(torch.Tensor):
    """What a library may make of a tensor."""


class Own(torch.nn.Parameter):
    """A parameter with methods of its own."""


class Metres(np.ndarray[Any, Any]):
    """What a library may make of an array."""


@pytest.fixture
def mesh() -> Iterator[Any]:
    """One process is a group."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def refused(value: Any, message: str) -> None:
    state = {"plain": np.ones(2, np.float32), "encoder.weight": value}
    for call in (SITE.layout, SITE.encrypt):
        with pytest.raises(LayoutError, match=f"'encoder.weight' {message}") as caught:
            call(state)
        assert "\n" not in str(caught.value)


def test_shards(mesh: Any) -> None:
    remedy = r"is sharded .* full_tensor\(\) on every rank, and send from rank 0"
    shard = distribute_tensor(torch.ones(4, 2), mesh, [Shard(0)])
    refused(shard, remedy)
    refused(torch.nn.Parameter(shard), remedy)
    network = torch.nn.Linear(3, 2)
    fully_shard(network, mesh=mesh)
    refused(network.state_dict()["weight"], remedy)
    assert (
        SITE.layout({name: value.full_tensor() for name, value in network.state_dict().items()}).size("encrypted") == 8
    )


def fake(copy: bool) -> Any:
    with FakeTensorMode() as mode:
        return torch.nn.Linear(3, 2).weight if not copy else mode.from_tensor(torch.ones(2))


@pytest.mark.parametrize(
    "transform",
    [
        torch.func.vmap,
        torch.func.grad,
        torch.func.functionalize,
        lambda call: lambda value: torch.func.jvp(call, (value,), (value,)),
    ],
    ids=["vmap", "grad", "functionalize", "jvp"],
)
def test_tensors_inside_a_transformation_of_torch(transform: Any) -> None:
    """They have no memory of their own; what is there is of all calls at once, or of none."""

    def call(value: Any) -> Any:
        refused(value, r"has no memory of its own, as inside torch\.func \(vmap, grad\)")
        return value.sum()

    transform(call)(torch.ones(3, 2)[0] if transform is torch.func.grad else torch.ones(3, 2))


def freed() -> Any:
    tensor = torch.ones(3)
    tensor.untyped_storage().resize_(0)
    return tensor


TENSORS: dict[str, tuple[Callable[[], Any], str]] = {
    "fake": (lambda: fake(False), "is a FakeTensor, .* outside FakeTensorMode"),
    "fake of a real one": (lambda: fake(True), "is a FakeTensor, .* outside FakeTensorMode"),
    "lazy parameter": (lambda: torch.nn.LazyLinear(3).weight, "is lazy, .* run the network once"),
    "lazy buffer": (lambda: torch.nn.LazyBatchNorm1d().state_dict()["running_var"], "is lazy, .* run the network once"),
    "meta": (lambda: torch.empty(2, device="meta"), "is on the device meta, .* load_state_dict"),
    "meta parameter": (
        lambda: torch.nn.Linear(2, 2, device="meta").weight,
        "is on the device meta, .* load_state_dict",
    ),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "is nested, .* pad it"),
    "jagged": (
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
        "is nested, .* pad it",
    ),
    "sparse": (lambda: torch.eye(3).to_sparse(), r"has the layout torch.sparse_coo: give to_dense\(\)"),
    "sparse rows": (lambda: torch.eye(3).to_sparse_csr(), r"has the layout torch.sparse_csr: give to_dense\(\)"),
    "opaque": (lambda: torch.eye(3).to_mkldnn(), r"has the layout torch._mkldnn: give to_dense\(\)"),
    "quantised": (
        lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        r"is quantised: give dequantize\(\)",
    ),
    "subclass": (
        lambda: torch.ones(2).as_subclass(Units),
        r"is of the class Units, .* \(\.detach\(\)\.as_subclass\(torch\.Tensor\)",
    ),
    "own parameter": (
        lambda: Own(torch.ones(2)),
        r"is of the class Own, .* \(\.detach\(\)\.as_subclass\(torch\.Tensor\)",
    ),
    "freed": (freed, "has no values, for its storage was freed"),
}


@pytest.mark.parametrize("kind", TENSORS)
@pytest.mark.filterwarnings("ignore:.*(nested tensors|Sparse CSR|quantize_per_tensor)")
def test_tensors_that_cannot_be_sent(kind: str) -> None:
    make, message = TENSORS[kind]
    refused(make(), message)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array([1.0, None]), r"holds Python objects: .* \(astype\)"),
        (np.zeros(2, [("a", "f4"), ("b", "O")]), "holds Python objects"),
        (np.zeros(2, [("a", "f4"), ("b", "f4")]), "has the fields a, b: give each as an array of its own"),
        (np.zeros(2, [("a", "f4"), ("b", "f4")])[0], "has the fields a, b"),
        (np.ma.array([1.0, 2.0], mask=[0, 1]), r"is a masked array: fill it first \(filled\(\)\)"),
        (np.zeros(2).view(np.recarray), r"is of the class recarray, .* np\.asarray\(\)"),
        (np.zeros(2).view(Metres), r"is of the class Metres, .* np\.asarray\(\)"),
        (np.zeros((2, 2)).view(np.matrix), r"is of the class matrix, .* np\.asarray\(\)"),
    ],
    ids=["object", "object field", "structured", "record", "masked", "recarray", "subclass", "matrix"],
)
def test_arrays_that_cannot_be_sent(value: Any, message: str) -> None:
    refused(value, message)


def test_what_is_plain_is_sent(tmp_path: Path) -> None:
    mapped = np.memmap(tmp_path / "w", np.float32, "w+", shape=(2, 3))
    mapped[:] = 0.5
    state = {
        "tensor": torch.full((2,), 0.5),
        "parameter": torch.nn.Parameter(torch.full((2,), 0.5)),
        "buffer": torch.nn.Buffer(torch.full((2,), 0.5)),
        "own parameter's": Own(torch.full((2,), 0.5)).detach(),  # as in a state dict
        "expanded": torch.full((1,), 0.5).expand(2),
        "empty": torch.ones(0, 3),
        "memmap": mapped,
        "scalar": np.float32(0.5),
    }
    assert [spec.name for spec in SITE.layout(state).tensors] == list(state)
    assert SITE.encrypt(state).header.layout.size("encrypted") == 17


def test_arrays_are_sent_while_another_thread_imports_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a training script's does, in the process of a framework: its module is there, and has no tensors yet."""
    monkeypatch.setitem(sys.modules, "torch", ModuleType("torch"))
    state = {"w": np.full(3, 0.5, np.float32)}
    assert not is_torch(state["w"])
    assert SITE.encrypt(state).header.layout.size("encrypted") == 3
