"""Promise 4: any model comes back with the shapes, dtypes and containers that went in."""

from __future__ import annotations

from collections import OrderedDict
from types import MappingProxyType

import numpy as np
import pytest
import torch
from federation import PRECISE, TINY, TINY_AGGREGATION, dtype_of, federate

from secagg.errors import LayoutError

pytestmark = pytest.mark.usefixtures("kernels")


def mean_of(federation, states, weights=None):
    return federation.site().decrypt(federation.sum(states, weights), like=states[0])


def torch_state(factor):
    """Torch tensors of every float dtype and of every kind of memory."""
    base = torch.linspace(-1, 1, 24).reshape(4, 6) * factor
    shared = torch.linspace(-0.5, 0.5, 10) * factor
    return {
        "scalar": torch.tensor(0.25 * factor),
        "empty": torch.empty(3, 0, 2),
        "transposed": base.T,
        "strided": base.clone()[::2, 1::3],
        "expanded": (torch.tensor([[0.5]]) * factor).expand(3, 4),
        "channels_last": (torch.ones(2, 3, 4, 5) * factor).to(memory_format=torch.channels_last),
        "shared": shared,
        "again_shared": shared[:],
        "view": shared.clone()[2:7],
        "parameter": torch.nn.Parameter(torch.full((5,), 0.5) * factor),
        # Views with the sign not yet applied; a contiguous one, of a single value, too.
        "negated": torch.complex(base, base / 2).conj().imag,
        "negated_scalar": torch.complex(base[0, 0], base[0, 1]).conj().imag,
        "half": (base / 3).half(),
        "bfloat": (base / 3).bfloat16(),
        "bfloat_strided": (base / 3).bfloat16().T,
        "double": (base / 3).double(),
        "steps": torch.tensor(int(100 * factor)),
        "mask": torch.tensor([True, False]),
        "bytes": torch.tensor([1, 2, 3], dtype=torch.uint8),
    }


def numpy_state(factor):
    base = np.linspace(-1, 1, 24).reshape(4, 6) * factor
    frozen = base.copy()
    frozen.flags.writeable = False
    return {
        "scalar": np.array(0.25 * factor),
        "numpy_scalar": np.float32(0.75 * factor),
        "numpy_int": np.int64(9),
        "empty": np.empty((0, 4), np.float32),
        "transposed": base.astype(np.float32).T,
        "strided": base.copy()[::2, ::-2],
        "reversed": base.astype(np.float16)[::-1],
        "fortran": np.asfortranarray(base),
        "big_endian": base.astype(">f4"),
        "read_only": frozen,
        "shared": base,
        "again_shared": base[:],
        "view": base.copy()[1],
        "half": base.astype(np.float16),
        "unsigned": np.arange(4, dtype=np.uint16),  # an integer, and not taken for bfloat16
        "mask": np.array([[True], [False]]),
    }


@pytest.mark.parametrize("encrypt", ["all", {"exclude": ["s*", "bfloat*", "half"]}], ids=["encrypted", "partly"])
@pytest.mark.parametrize("state", [torch_state, numpy_state])
def test_every_kind_of_tensor(mode, state, encrypt):
    if state is numpy_state and encrypt != "all":
        encrypt = {"exclude": ["s*", "half"]}
    params = {"CKKS": TINY, "BGV": {"value_bits": 12}, "FLASHE": {"value_bits": 12}}  # for the smallest values, too
    federation = federate(mode, params, encrypt, **TINY_AGGREGATION)
    states = [state(1.0), state(0.5), state(-0.25)]
    mean = mean_of(federation, states, [1.0, 0.5, 0.25])
    federation.assert_mean(mean, states, [1.0, 0.5, 0.25])
    assert list(mean) == list(states[0])
    for name, value in mean.items():
        like = states[0][name]
        assert (type(value), value.dtype, value.shape) == (
            torch.Tensor if isinstance(like, torch.Tensor) else type(like),
            like.dtype,
            like.shape,
        )


@pytest.mark.parametrize("state", [torch_state, numpy_state])
def test_integers_and_bools_stay_at_the_site(lib, state):
    """`like`'s own value returns, and the header says what was left out."""
    federation = federate(lib)
    aggregate = federation.sum([state(1.0), state(0.5)])
    mine = state(0.3)
    mean = federation.site().decrypt(aggregate, like=mine)
    local = [name for name, value in mine.items() if "int" in dtype_of(value) or "bool" in dtype_of(value)]
    assert len(local) == 3
    assert all(mean[name] is mine[name] for name in local)
    assert [spec.name for spec in aggregate.header.layout.role("local")] == local
    assert aggregate.header.layout.size("local") > 0


@pytest.mark.parametrize("state", [torch_state, numpy_state])
def test_neither_state_nor_like_is_touched(lib, state):
    federation = federate(lib)
    first, second, like = state(1.0), state(0.5), state(0.5)
    mean = federation.site().decrypt(federation.sum([first, second]), like=like)
    for given, model in ((first, state(1.0)), (second, state(0.5)), (like, state(0.5))):
        assert all((given[name] == model[name]).all() for name in model)
    for name, value in mean.items():
        if isinstance(value, np.ndarray) and value is not like[name]:
            assert not np.shares_memory(value, like[name])
            assert value.flags.writeable


def test_without_like_the_mean_is_numpy_arrays(lib):
    federation = federate(lib)
    states = [torch_state(1.0), torch_state(0.5)]
    mean = federation.site().decrypt(federation.sum(states))
    assert type(mean) is dict
    assert list(mean) == [name for name in states[0] if name not in ("steps", "mask", "bytes")]
    for name, value in mean.items():
        assert isinstance(value, np.ndarray)
        assert value.shape == tuple(states[0][name].shape)
        wanted = dtype_of(states[0][name])
        assert value.dtype == ("float32" if wanted == "bfloat16" else wanted)  # NumPy has no bfloat16
    with_like = federation.site().decrypt(federation.sum(states), like=states[0])
    np.testing.assert_allclose(mean["bfloat"], with_like["bfloat"].float().numpy(), atol=0.02)


def test_like_may_be_of_another_library(lib):
    """Layouts say float32, not torch: a NumPy site and a torch site agree."""
    federation = federate(lib)
    arrays = {"w": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)}
    tensors = {"w": torch.from_numpy(arrays["w"].copy())}
    aggregate = federation.sum([arrays, tensors])
    assert isinstance(federation.site().decrypt(aggregate, like=tensors)["w"], torch.Tensor)
    assert isinstance(federation.site().decrypt(aggregate, like=arrays)["w"], np.ndarray)


def test_container_types(lib):
    """A state dict keeps its class and its attributes; what is no dict comes back as one."""
    federation = federate(lib)
    ordered = OrderedDict(b=torch.ones(2), a=torch.zeros(1))
    ordered._metadata = {"": {"version": 1}}
    mean = mean_of(federation, [ordered, ordered])
    assert type(mean) is OrderedDict
    assert list(mean) == ["b", "a"]
    assert mean._metadata == {"": {"version": 1}}
    assert mean is not ordered
    assert type(mean_of(federation, [MappingProxyType({"w": np.ones(1)})] * 2)) is dict


def test_a_module_loads_its_mean(lib):
    federation = federate(lib)
    torch.manual_seed(0)
    models = [
        torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Linear(2, 2)) for _ in range(2)
    ]
    models[0][1].num_batches_tracked += 5
    states = [model.state_dict() for model in models]
    mean = mean_of(federation, states)
    federation.assert_mean(mean, states)
    models[1].load_state_dict(mean)
    assert models[1][1].num_batches_tracked == 5
    assert torch.equal(models[1][0].weight, mean["0.weight"])


def test_small_values_of_16_bits(lib):
    """Subnormal halves and the largest ones are neither flushed nor overflown on the way."""
    ckks = {"poly_modulus_degree": 8192, "coeff_mod_bit_sizes": [60, 60], "scale_bits": 38}
    federation = federate(lib, PRECISE | {"CKKS": ckks}, max_abs=65504.0, max_clients=2)
    state = {"w": np.array([65504.0, -65504.0, 6e-8, 1.0], np.float16)}
    mean = mean_of(federation, [state, state])
    np.testing.assert_array_equal(mean["w"][:2], state["w"][:2])
    federation.assert_mean(mean, [state, state])


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ([np.ones(3)], "list"),
        ({"w": [1.0, 2.0]}, "'w' is a list"),
        ({"w": 1.0}, "'w' is a float"),
        ({"w": None}, "'w' is a NoneType"),
        ({"a": np.ones(1), "w": np.ones(2, np.complex64)}, "'w' has dtype complex64"),
        ({"w": torch.ones(2, dtype=torch.complex64)}, "'w' has dtype complex64"),
        ({"w": np.array(["x"])}, "'w' has dtype str"),
        ({"w": np.ones(2, np.longdouble)}, "'w' has dtype"),
        ({"w": torch.ones(2).to(torch.float8_e4m3fn)}, "'w' has dtype float8"),
        ({7: np.ones(1)}, "tensor name 7"),
        ({"": np.ones(1)}, "tensor name ''"),
        ({"a\nb": np.ones(1)}, "tensor name"),
        ({"x" * 513: np.ones(1)}, "tensor name"),
    ],
    ids=str,
)
def test_what_cannot_be_aggregated(lib, state, message):
    with pytest.raises(LayoutError, match=message):
        federate(lib).site().encrypt(state)


@pytest.mark.parametrize(
    "like",
    [
        {},
        {"n": np.int64(1)},
        {"w": np.ones((3, 1), np.float32), "n": np.int64(1)},
        {"w": np.ones(3, np.float64), "n": np.int64(1)},
        {"w": np.ones(3, np.int64), "n": np.int64(1)},
        {"v": np.ones(3, np.float32), "n": np.int64(1)},
        {"w": np.ones(3, np.float32), "n": np.int64(1), "more": np.ones(1)},
    ],
    ids=["empty", "missing", "shape", "dtype", "kind", "name", "more"],
)
def test_like_of_another_model(lib, like):
    federation = federate(lib)
    aggregate = federation.sum([{"w": np.ones(3, np.float32), "n": np.int64(1)}] * 2)
    with pytest.raises(LayoutError, match="another model"):
        federation.site().decrypt(aggregate, like=like)


def test_a_new_layer_is_encrypted_too(lib):
    """The choice is made for each model anew: nothing is remembered from the first call."""
    site = federate(lib, encrypt="all").site()
    roles = [
        {spec.name: spec.role for spec in site.encrypt(state).header.layout.tensors}
        for state in ({"a": np.ones(1)}, {"a": np.ones(1), "b": np.ones(1)}, {"c": np.ones(1)})
    ]
    assert roles == [{"a": "encrypted"}, {"a": "encrypted", "b": "encrypted"}, {"c": "encrypted"}]
