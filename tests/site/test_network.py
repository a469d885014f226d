"""The names of a network without its wrappers: what is a wrapper, what is not, and what is loaded through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.optim.swa_utils import AveragedModel

from secagg.errors import LayoutError
from secagg.site import load_network, network_state

DataParallel, DistributedDataParallel = torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel
Wrap = Callable[[torch.nn.Module], torch.nn.Module]


class Net(torch.nn.Module):
    """An encoder, tied weights, a buffer and a count, in an order of their own."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.register_buffer("scale", torch.rand(2))
        self.encoder = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
        self.tied = self.encoder[0]
        self.head = torch.nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(x)) * self.scale


def compiled(network: torch.nn.Module) -> torch.nn.Module:
    return torch.compile(network, backend="eager")  # type: ignore[return-value]


def compiled_in_place(network: torch.nn.Module) -> torch.nn.Module:
    network.compile(backend="eager")
    return network


def compiled_inside(network: torch.nn.Module) -> torch.nn.Module:
    inner = network.get_submodule("encoder")
    inner[0], inner[1] = compiled(inner[0]), sampled(compiled(inner[1]))
    network.encoder = compiled(inner)
    return network


def like_opacus(name: str, attribute: str) -> Wrap:
    """A wrapper as Opacus, which is not installed, has it."""

    def __init__(self: Any, inner: torch.nn.Module) -> None:
        torch.nn.Module.__init__(self)
        setattr(self, attribute, inner)

    base = type(name, (torch.nn.Module,), {"__module__": "opacus.grad_sample.gsm_base", "__init__": __init__})
    return type(f"{name}Fast", (base,), {"__module__": "opacus.grad_sample.fast"})


sampled = like_opacus("AbstractGradSampleModule", "_module")

WRAPPERS: dict[str, Wrap] = {
    "none": lambda network: network,
    "data parallel": DataParallel,
    "distributed": DistributedDataParallel,
    "compiled": compiled,
    "compiled in place": compiled_in_place,
    "compiled inside": compiled_inside,
    "averaged": AveragedModel,
    "sampled": sampled,
    "sampled, early": like_opacus("GradSampleModule", "_module"),
    "sampled, distributed": like_opacus("DifferentiallyPrivateDistributedDataParallel", "module"),
    "recomputed": checkpoint_wrapper,
    "data parallel of compiled": lambda network: DataParallel(compiled(network)),
    "compiled of data parallel": lambda network: compiled(DataParallel(network)),
    "distributed of compiled": lambda network: DistributedDataParallel(compiled(network)),
    "recomputed of compiled": lambda network: checkpoint_wrapper(compiled(network)),
    "averaged of all": lambda network: AveragedModel(DataParallel(compiled(sampled(compiled_inside(network))))),
    "compiled averaged": lambda network: compiled(AveragedModel(DataParallel(network))),
    "fully sharded over one": lambda network: FullyShardedDataParallel(
        compiled(network), device_id=torch.device("cpu"), use_orig_params=True
    ),
}


@pytest.fixture(autouse=True, scope="module")
def group() -> Iterator[None]:
    """One process is a group, for what is distributed."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.filterwarnings("ignore:.*(NO_SHARD|FSDP)")
def test_wrapped_networks_have_the_tensors_of_the_plain_one(wrapper: str) -> None:
    expected = Net().state_dict()
    network = WRAPPERS[wrapper](Net())
    state = network_state(network)
    assert list(state) == list(expected)
    for name, value in state.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)
    if not wrapper.startswith("fully"):  # which gathers copies
        places = {id(network): value.data_ptr() for value in network.parameters()}
        assert set(places.values()) <= {value.data_ptr() for value in state.values()}
        assert state["tied.weight"].data_ptr() == state["encoder.0.weight"].data_ptr()

    other = Net(1).state_dict()
    load_network(network, dict(reversed(other.items())))
    for name, value in network_state(network).items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=0)


def test_a_wrappers_own_tensors_stay() -> None:
    network = AveragedModel(Net())
    network.update_parameters(Net(1))
    network.update_parameters(Net(2))
    load_network(network, Net(3).state_dict())
    assert network.n_averaged == 2
    assert "n_averaged" not in network_state(network)

    class Teacher(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student = torch.nn.Linear(2, 2)
            self.teacher = AveragedModel(self.student)

    plain = ["student.weight", "student.bias", "teacher.weight", "teacher.bias"]
    assert list(network_state(compiled(Teacher()))) == plain


def test_names_that_only_look_like_a_wrappers() -> None:
    class AveragedModel(torch.nn.Module):
        """A class of the user's own, which only has a name of torch's."""

        def __init__(self) -> None:
            super().__init__()
            self.module = torch.nn.Linear(2, 2)
            self._module = torch.nn.Linear(2, 2)
            self._orig_mod = torch.nn.ParameterDict({"module": torch.ones(1)})
            self.register_buffer("n_averaged", torch.ones(1))

    names = ["n_averaged", "module.weight", "module.bias", "_module.weight", "_module.bias", "_orig_mod.module"]
    for wrap in (WRAPPERS["none"], compiled, DataParallel, torch.optim.swa_utils.AveragedModel):
        assert sorted(network_state(wrap(AveragedModel()))) == sorted(names)


def test_a_subclass_of_a_wrapper_is_one() -> None:
    class Own(DataParallel):
        """As graph libraries have it."""

    assert list(network_state(Own(Net()))) == list(Net().state_dict())


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace")
def test_scripted_and_lazy_networks_and_extra_state_pass_through() -> None:
    class Counting(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.seen = torch.nn.LazyLinear(2), {"cases": 3}

        def get_extra_state(self) -> Any:
            return self.seen

        def set_extra_state(self, state: Any) -> None:
            self.seen = state

    network = DataParallel(Counting())
    state = network_state(network)
    assert list(state) == ["_extra_state", "inner.weight", "inner.bias"]
    assert state["_extra_state"] == {"cases": 3}
    assert torch.nn.parameter.is_lazy(state["inner.weight"])
    load_network(network, state | {"_extra_state": {"cases": 4}})
    assert network.module.seen == {"cases": 4}
    load_network(network, {"inner.weight": torch.ones(2, 3), "inner.bias": torch.ones(2), "_extra_state": {}})
    assert network.module.inner.weight.shape == (2, 3)

    traced = DataParallel(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)))
    assert list(network_state(traced)) == ["weight", "bias"]


def test_loading_casts_and_keeps_the_parameters() -> None:
    network = compiled(Net().to(torch.bfloat16))
    parameters = list(network.parameters())
    other = {
        name: value.double() if value.is_floating_point() else value for name, value in Net(1).state_dict().items()
    }
    load_network(network, other)
    assert all(one is two for one, two in zip(network.parameters(), parameters, strict=True))
    expected = Net(1).to(torch.bfloat16).state_dict()
    for name, value in network_state(network).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)


def _change(**changes: Any) -> dict[str, Any]:
    state = {**Net(1).state_dict(), **{name.replace("__", "."): value for name, value in changes.items()}}
    return {name: value for name, value in state.items() if value is not None}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (_change(head__bias=None), "it lacks 'head.bias'$"),
        (_change(extra=torch.ones(1)), "it also has 'extra'$"),
        (_change(head__bias=torch.ones(3)), r"shapes differ: 'head.bias' \[3\], the network has \[2\]$"),
        (_change(scale=None, other=torch.ones(1)), "it lacks 'scale'; it also has 'other'$"),
        ({}, "it lacks 'scale', .*, and 7 more$"),
        ({f"_orig_mod.{name}": value for name, value in Net().state_dict().items()}, "also has '_orig_mod.scale'"),
        (_change(scale=[1.0, 2.0]), "the network refuses its tensors: .*scale"),
    ],
    ids=["missing", "unexpected", "shape", "both", "nothing", "wrapped", "no tensor"],
)
@pytest.mark.parametrize("wrapper", ["none", "data parallel of compiled", "compiled inside"])
def test_what_does_not_fit_is_refused_and_nothing_is_loaded(wrapper: str, state: Any, message: str) -> None:
    network = WRAPPERS[wrapper](Net())
    with pytest.raises(LayoutError, match=message) as caught:
        load_network(network, state)
    assert "\n" not in str(caught.value)
    if "refuses" not in message:
        for name, value in network_state(network).items():
            torch.testing.assert_close(value, Net().state_dict()[name], rtol=0, atol=0)


def test_names_that_clash_without_wrappers() -> None:
    network = torch.nn.Sequential(compiled(torch.nn.Linear(1, 1)))

    def add(module: Any, state: Any, prefix: str, metadata: Any) -> None:
        state["0.weight"] = torch.ones(1)

    network.register_state_dict_post_hook(add)
    with pytest.raises(LayoutError, match=r"'0\._orig_mod\.weight' and '0\.weight' .* both be '0\.weight'"):
        network_state(network)


@pytest.mark.parametrize("thing", [None, {"weight": torch.ones(1)}, 3])
def test_what_is_no_network(thing: Any) -> None:
    for call in (lambda: network_state(thing), lambda: load_network(thing, {})):
        with pytest.raises(LayoutError, match=f"a torch.nn.Module; got {type(thing).__name__}"):
            call()


def test_a_network_that_was_made_under_inference_mode() -> None:
    with torch.inference_mode():
        network = Net()
    with pytest.raises(LayoutError, match=r"^the network was made or loaded under torch.inference_mode, .*no_grad"):
        load_network(network, network_state(Net()))


def test_what_torch_says_of_each_tensor_is_cut() -> None:
    class Refuses(Net):
        def load_state_dict(self, *arguments: Any, **options: Any) -> Any:
            raise RuntimeError("no\n" * 10_000)

    with pytest.raises(LayoutError, match="^the network refuses its tensors: no no no") as caught:
        load_network(Refuses(), network_state(Net()))
    assert len(str(caught.value)) < 500
