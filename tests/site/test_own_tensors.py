"""The global model beyond plain tensors: ties, those that stay, that cannot be negative; and whose sum it takes."""

from __future__ import annotations

import inspect
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest
import torch
from container import Container

import secagg
from secagg.errors import DigestError, FormatError, LayoutError, MismatchError, RangeError, VerificationError
from secagg.site import GlobalModel


def configured(**blocks: Any) -> secagg.Config:
    aggregation = {"min_clients": 2, "max_clients": 4, "max_abs": 1.0, "max_weight": 1.0}
    he = {"lib": "flashe", "config": {"value_bits": 16, "rounding": "nearest"}}
    return secagg.Config.from_dict({"he": he, "aggregation": aggregation, **blocks})


PLAIN = configured()
KEYS = secagg.generate_keys(PLAIN)


def federation(state: Any, config: secagg.Config = PLAIN, count: int = 2, **more: Any) -> list[GlobalModel]:
    sites = [secagg.Client(config, KEYS.client, f"site-{index}") for index in range(count)]
    return [GlobalModel(site, state() if inspect.isfunction(state) else state, **more) for site in sites]


def add(*updates: secagg.Update, config: secagg.Config = PLAIN) -> secagg.Update:
    aggregator = secagg.Aggregator(config, KEYS.server, updates[0].header.round)
    for update in updates:
        aggregator.add(update)
    return aggregator.finish()


def one_round(models: list[GlobalModel], locals_: list[Any], config: secagg.Config = PLAIN) -> secagg.Update:
    aggregate = add(*(m.encrypt(local, 1.0) for m, local in zip(models, locals_, strict=True)), config=config)
    for model in models:
        assert model.apply(aggregate)
    return aggregate


# One tensor under several names.


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = torch.nn.Linear(4, 4)
        self.norm = torch.nn.LayerNorm(4)
        self.decoder = torch.nn.Linear(4, 4)
        self.decoder.weight = self.encoder.weight

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.norm(self.encoder(values)))


def network(seed: int = 0) -> Tied:
    torch.manual_seed(seed)
    return Tied()


def trained(model: GlobalModel, seed: int) -> dict[str, torch.Tensor]:
    """A network of the global model's weights, after something like training."""
    net = network()
    net.load_state_dict(model.state)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.rand(parameter.shape, generator=generator)
    return net.state_dict()


@pytest.mark.parametrize("encrypt", ["all", "first-middle-last", {"include": ["decoder.*"]}])
def test_ties_are_carried_to_differences(encrypt: Any) -> None:
    config = configured(encrypt=encrypt)
    models = federation(network().state_dict(), config)
    locals_ = [trained(model, seed) for seed, model in enumerate(models)]
    updates = [model.encrypt(local, 1.0) for model, local in zip(models, locals_, strict=True)]
    layout = updates[0].header.layout
    assert layout == models[0].layout
    (spec,) = (spec for spec in layout.tensors if "decoder.weight" in spec.names)
    assert (spec.names, spec.role) == (("encoder.weight", "decoder.weight"), "encrypted")
    assert sum(spec.size for spec in layout.sent) == 16 + 4 + 4 + 4 + 4
    aggregate = add(*updates, config=config)
    for model in models:
        model.apply(aggregate)
        state = model.state
        assert list(state) == list(locals_[0])
        assert state["encoder.weight"].data_ptr() == state["decoder.weight"].data_ptr()
        expected = (locals_[0]["encoder.weight"] + locals_[1]["encoder.weight"]) / 2
        assert torch.allclose(state["encoder.weight"], expected, atol=1e-3)
        assert model.difference(trained(model, 5)).keys() == state.keys()


def test_a_copy_of_each_tensor_is_a_copy_of_a_tied_one(tmp_path: Any) -> None:
    """A framework hands the tensors one by one: what is one in the model is compared, not guessed."""
    model, _ = federation(network().state_dict())
    local = {name: value.clone() for name, value in trained(model, 1).items()}
    assert model.encrypt(local, 1.0).header.layout == model.layout
    local["decoder.weight"] += 0.01
    with pytest.raises(
        LayoutError, match="'encoder.weight' and 'decoder.weight' are one in the global model, and have"
    ):
        model.encrypt(local, 1.0)


def test_what_is_found_before_training() -> None:
    model, _ = federation(network().state_dict())
    model.check(network(1).state_dict())
    model.check(network(1).half().state_dict())
    untied = {name: value.clone() for name, value in network().state_dict().items()}
    turned = dict(reversed(network().state_dict().items()))
    other = torch.nn.Sequential(torch.nn.Linear(4, 4)).state_dict()
    wider = network().state_dict() | {"norm.bias": torch.zeros(5)}
    for state, match in (
        (untied, "tensor 'encoder.weight' is .* expected .*one tensor with 'decoder.weight'"),
        (turned, "only the order differs|expected"),
        (other, "expected"),
        (wider, r"'norm.bias' is float32\[5\] encrypted, expected float32\[4\] encrypted"),
    ):
        with pytest.raises(LayoutError, match=match):
            model.check(state)


def test_a_state_in_another_order_is_found_before_training() -> None:
    """As a file that sorts its tensors gives it."""
    state = {"b": torch.ones(2), "a": torch.ones(3)}
    model, _ = federation(dict(sorted(state.items())))
    with pytest.raises(LayoutError, match="only the order differs: 'b' stands where 'a' is expected"):
        model.check(state)


# What stays at the site.


def own_state(classes: int = 2) -> dict[str, Any]:
    return {
        "head.weight": torch.full((classes, 3), 0.5, dtype=torch.bfloat16),
        "body.weight": torch.linspace(-1, 1, 6).reshape(2, 3),
        "body.mask": torch.full((2, 2), -torch.inf),
        "body.steps": torch.tensor(3),
        "body._extra_state": {"amax": [1.0]},
    }


STAY = configured(stay=["head.*", "*.mask", "*._extra_state"])


def test_what_stays_is_the_sites_own() -> None:
    models = [federation(own_state(classes), STAY)[index] for index, classes in enumerate((2, 5))]
    locals_ = []
    for index, model in enumerate(models):
        local = model.state
        assert list(local) == list(own_state())
        local["head.weight"] += index + 1
        local["body.weight"] += 0.5 * (index + 1)
        local["body._extra_state"] = {"amax": [7.0 + index]}
        locals_.append(local)
    one_round(models, locals_, STAY)
    for index, model in enumerate(models):
        state = model.state
        assert list(state) == list(own_state())
        assert torch.equal(state["head.weight"], torch.full(((2, 5)[index], 3), 1.5 + index, dtype=torch.bfloat16))
        assert torch.equal(state["body.mask"], torch.full((2, 2), -torch.inf))
        assert state["body._extra_state"] == {"amax": [7.0 + index]}
        assert torch.allclose(state["body.weight"], own_state()["body.weight"] + 0.75, atol=1e-3)
    assert models[0].base == models[1].base


def test_what_stays_is_exported_and_what_cannot_be_is_said() -> None:
    model, _ = federation(own_state(), STAY)
    local = model.state
    local["head.weight"] += 1
    model.encrypt(local, 1.0)
    with pytest.warns(UserWarning, match="'body._extra_state' cannot be stored with the global model"):
        blob = model.to_bytes()
    again = GlobalModel.from_bytes(model.site, blob)
    mine = model.state
    assert list(again.state) == [name for name in mine if name != "body._extra_state"]
    assert all(torch.equal(value, mine[name]) for name, value in again.state.items())
    assert (again.base, again.round) == (model.base, model.round)
    again.encrypt(local, 1.0)  # the network has it again
    assert again.state["body._extra_state"] == {"amax": [1.0]}


def test_the_own_tensors_alone() -> None:
    """Beside a model that is stored without them."""
    model, other = federation(own_state(), STAY)
    local = model.state
    local["head.weight"] += 1
    local["body.steps"] += 4
    model.encrypt(local, 1.0)
    assert model.not_stored == ("body._extra_state",)
    blob = model.own_to_bytes()
    other.own_from_bytes(blob)
    for name in ("head.weight", "body.steps", "body.mask"):
        assert torch.equal(other.state[name], model.state[name])
        assert other.state[name].dtype == own_state()[name].dtype
    for bad, error in (
        (blob[:-1], DigestError),
        (b"", FormatError),
        (None, FormatError),
        (federation(STATE)[0].to_bytes(), FormatError),
    ):
        with pytest.raises(error):
            other.own_from_bytes(bad)
    plain, _ = federation({"body.weight": np.ones(2), "body.steps": np.int64(1)})
    with pytest.raises(LayoutError, match="this model has others"):
        plain.own_from_bytes(blob)
    wrong, _ = federation({"body.weight": np.ones(2), "body.steps": np.ones(3, np.int64)})
    with pytest.raises(LayoutError, match="'body.steps'"):
        wrong.own_from_bytes(plain.own_to_bytes())
    assert wrong.state["body.steps"].tolist() == [1, 1, 1]


def test_an_export_of_tensors_that_stay_needs_torch() -> None:
    config = configured(stay=["head.*"])
    model, _ = federation({"head.weight": torch.ones(2), "body.weight": torch.ones(2)}, config)
    program = (
        "import sys, secagg; from secagg.errors import StateError; from secagg.site import GlobalModel\n"
        "from secagg.site.snapshot import Snapshot\n"
        "try: Snapshot.from_bytes(sys.stdin.buffer.read())\n"
        "except StateError as error: print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], input=model.to_bytes(), capture_output=True, check=True)
    assert b"import torch first" in result.stdout


# Domains.


@pytest.mark.parametrize("make", [np.array, torch.tensor], ids=["numpy", "torch"])
@pytest.mark.parametrize("name", ["bn.running_var", "running_var", "opt.exp_avg_sq", "opt.square_avg"])
def test_variances_stay_at_or_above_zero(name: str, make: Any) -> None:
    """A variance near 1e-5 and a step of 3e-5: it went below zero, and validation was not a number."""

    def state() -> dict[str, Any]:
        return {name: make(np.array([1.0, 1e-5, 0.5], np.float32)), "other.mean": make(np.array([1e-6], np.float32))}

    models = federation(state, count=3)
    locals_ = []
    for model in models:
        local = model.state
        local[name][:] = make(np.array([2e-5, 0.0, 0.25], np.float32))  # as after a round of small inputs
        local["other.mean"][:] = -0.25
        locals_.append(local)
    one_round(models, locals_)
    first = [np.asarray(value) for value in models[0].state.values()]
    assert (first[0] >= 0).all()
    assert np.abs(first[0] - [2e-5, 0, 0.25]).max() < 2 / 32767
    assert first[1] < -0.2  # another tensor may go where it will
    for model in models[1:]:
        np.testing.assert_array_equal(np.asarray(model.state[name]), first[0])


def test_a_floor_that_matters() -> None:
    """Without the floor, the sum of what sites sent is below zero here."""
    models = federation({"bn.running_var": np.array([1.4e-5], np.float32)})
    one_round(models, [{"bn.running_var": np.array([0.0], np.float32)}] * 2)
    step = 1 / 32767
    assert step / 2 > 1.4e-5  # nothing was sent at all
    assert models[0].state["bn.running_var"] == np.float32(1.4e-5)
    models = federation({"bn.running_var": np.array([1.6e-5], np.float32)})
    one_round(models, [{"bn.running_var": np.array([0.0], np.float32)}] * 2)
    assert 1.6e-5 - step < 0
    assert models[0].state["bn.running_var"] == 0


def test_patterns_of_the_user_and_the_header_that_says_so() -> None:
    config = configured(nonnegative=["scale"])
    models = federation({"scale": np.array([1.6e-5]), "bn.running_var": np.ones(1), "free": np.ones(1)}, config)
    assert [spec.nonnegative for spec in models[0].layout.tensors] == [True, True, False]
    one_round(models, [{"scale": np.zeros(1), "bn.running_var": np.ones(1), "free": -np.zeros(1)}] * 2, config)
    assert models[0].state["scale"] == 0
    plain = federation({"scale": np.array([1.6e-5]), "bn.running_var": np.ones(1), "free": np.ones(1)})
    aggregator = secagg.Aggregator(config, KEYS.server)
    with pytest.raises(LayoutError, match="'scale' is float64.* expected .*never negative"):
        aggregator.add(plain[0].encrypt(plain[0].state, 1.0))


def test_a_variance_that_training_made_negative() -> None:
    model, _ = federation({"bn.running_var": np.ones(2, np.float32)})
    with pytest.raises(RangeError, match="'bn.running_var' is negative after training"):
        model.encrypt({"bn.running_var": np.array([1, -0.5], np.float32)}, 1.0)


def test_what_was_negative_before_is_no_variance() -> None:
    models = federation({"log.running_var": np.array([-0.5, 0.5], np.float32)})
    one_round(models, [{"log.running_var": np.array([-0.75, -0.25], np.float32)}] * 2)
    np.testing.assert_allclose(models[0].state["log.running_var"], [-0.75, -0.25], atol=1e-3)


# Whose sum it is.


STATE = {"w": np.linspace(-0.5, 0.5, 5, dtype=np.float32)}


def test_two_runs_under_one_key() -> None:
    """The same model, round and sites: what tells the runs apart is their id, in the first base."""
    first, second = federation(STATE, context="run 1"), federation(STATE, context="run 2")
    assert len({model.base for model in (*first, *second, *federation(STATE))}) == 3
    sums = add(*(model.encrypt(model.state, 1.0) for model in second))
    with pytest.raises(VerificationError, match="began from another global model"):
        first[0].apply(sums)
    layout = secagg.Layout.of(STATE, PLAIN)  # no key is needed
    assert layout.base(STATE, "run 1") == first[0].base == first[0].site.base(STATE, "run 1")
    with pytest.raises(LayoutError, match="the context of a base is 7"):
        layout.base(STATE, 7)


def test_a_sum_of_another_run_of_the_same_id() -> None:
    """A server that chooses the ids of runs can give two of them one; the own nonce is in one sum only."""
    first, second = federation(STATE), federation(STATE)
    other = add(*(model.encrypt(model.state, 1.0) for model in second))
    mine = first[0].encrypt(STATE, 1.0)
    with pytest.raises(VerificationError, match="lists another update of site 'site-0'"):
        first[0].apply(other)
    without = federation(STATE, count=3)
    sums = add(*(model.encrypt(STATE, 1.0) for model in without[1:]))
    with pytest.raises(VerificationError, match="lists no update of site 'site-0'"):
        first[0].apply(sums)
    assert (first[0].round, first[0].base) == (0, without[0].base)
    again = GlobalModel.from_bytes(first[0].site, first[0].to_bytes())
    with pytest.raises(VerificationError, match="lists no update of site 'site-0'"):
        again.apply(sums)
    second_try = first[0].encrypt(STATE, 1.0)
    assert second_try.header.contributions != mine.header.contributions
    assert GlobalModel.from_bytes(first[0].site, first[0].to_bytes()).apply(
        add(mine, federation(STATE)[1].encrypt(STATE, 1.0))
    )  # either may have been uploaded
    first[0].withdraw()
    assert first[0].apply(sums)


def test_nothing_is_claimed_for_the_round_after() -> None:
    models = federation(STATE, count=3)
    one_round(models, [STATE] * 3)
    sums = add(*(model.encrypt(model.state, 1.0) for model in models[1:]))
    assert models[0].apply(sums)  # which has sent nothing in this round


def test_decrypt_wants_its_own() -> None:
    models = federation(STATE)
    updates = [model.encrypt(STATE, 1.0) for model in models]
    nonces = [update.header.contributions[0].nonce for update in updates]
    aggregate, site = add(*updates), models[0].site
    assert site.decrypt(aggregate, own=nonces[0])
    for own in (nonces[1], bytes(32)):
        with pytest.raises(VerificationError, match="another update of site 'site-0'"):
            site.decrypt(aggregate, own=own)
    stranger = secagg.Client(PLAIN, KEYS.client, "stranger")
    with pytest.raises(VerificationError, match="no update of site 'stranger'"):
        stranger.decrypt(aggregate, own=nonces[0])


def test_who_has_sent_nothing_yet_has_nothing_to_carry() -> None:
    """A site that skips the first rounds, or catches up from the first model, is not told that something was lost."""
    he = {"lib": "flashe", "config": {"value_bits": 6, "error_feedback": True}}
    config = secagg.Config.from_dict({"he": he, "aggregation": {"min_clients": 2, "max_clients": 4, "max_abs": 1.0}})
    models = federation(STATE, config, count=3)
    sums = add(*(model.encrypt(STATE, 1.0) for model in models[1:]), config=config)
    for model in models:
        model.apply(sums)
    models[0].encrypt(STATE, 1.0)  # without a warning, which would be an error here
    again = GlobalModel(secagg.Client(config, KEYS.client, "site-1"), STATE)
    again.apply(sums)  # in which it is: what that update left is lost
    with pytest.warns(UserWarning, match="earlier updates, if there are any, is lost"):
        again.encrypt(STATE, 1.0)


def test_a_tie_to_what_stays() -> None:
    """The other name of a tensor that stays stays, too, at the difference as at the model."""
    config = configured(stay=["private.*"])
    shared = torch.linspace(-1, 1, 6).reshape(2, 3)
    state = {"head.weight": shared, "private.weight": shared, "body.weight": torch.ones(2)}
    models = federation(state, config)
    updates = []
    for model in models:
        assert [spec.names for spec in model.layout.tensors] == [("body.weight",)]
        local = {name: value.clone() + 0.25 for name, value in model.state.items()}  # a handler copies one by one
        updates.append(model.encrypt(local, 1.0))
        assert updates[-1].header.layout == model.layout
    aggregate = add(*updates, config=config)
    for model in models:
        model.apply(aggregate)
        again = GlobalModel.from_bytes(model.site, model.to_bytes())
        for each in (model.state, again.state):
            assert list(each) == list(state)
            assert torch.equal(each["head.weight"], shared + 0.25)
            assert torch.equal(each["private.weight"], shared + 0.25)
        assert again.encrypt(again.state, 1.0).header.layout == model.layout


class Plain(torch.Tensor):
    """Of a class of its own."""


SECRET = torch.tensor([0.5, 0.25, 0.75])
STAYING = {
    "a subclass": lambda: {"secret": SECRET.as_subclass(Plain), "alias": SECRET},
    "a subclass after": lambda: {"alias": SECRET, "secret": SECRET.as_subclass(Plain)},
    "a tensor": lambda: {"secret": SECRET, "alias": SECRET},
}
COMPLEX, ARRAY = torch.ones(3, dtype=torch.cfloat), np.ones(3, np.float32)
OVERLAPPING = {
    "complex": lambda: {"secret": COMPLEX, "alias": torch.view_as_real(COMPLEX)},
    "bits": lambda: {"secret": SECRET.view(torch.int32), "alias": SECRET},
    "a masked array": lambda: {"secret": np.ma.masked_array(ARRAY), "alias": ARRAY[:2]},
}


@pytest.mark.parametrize("make", STAYING.values(), ids=STAYING)
def test_what_stays_by_a_name_that_no_update_could_have(make: Any) -> None:
    config = configured(stay=["secret"], encrypt={"include": ["x"]})
    state = make() | {"x": torch.ones(2)}
    model, _ = federation(state, config)
    assert [spec.names for spec in model.layout.tensors] == [("x",)]
    assert model.encrypt(state, 1.0).header.layout == model.layout


@pytest.mark.parametrize("make", OVERLAPPING.values(), ids=OVERLAPPING)
def test_what_stays_and_is_a_part_of_something_else(make: Any) -> None:
    site = secagg.Client(configured(stay=["secret"]), KEYS.client, "site-1")
    with pytest.raises(LayoutError, match="have a part of their memory in common"):
        site.layout(make() | {"x": torch.ones(2)})


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("make", [np.array, torch.tensor], ids=["numpy", "torch"])
def test_scalars_that_are_floored(make: Any, tied: bool) -> None:
    config = configured(nonnegative=["*scale"])
    scale = make(np.float32(1.6e-5))
    state = {"a.scale": scale, "b.scale": scale if tied else make(np.float32(0.5)), "w": make(np.ones(2, np.float32))}
    models = federation(state, config)
    one_round(models, [{**state, "a.scale": make(np.float32(0.0)), "b.scale": make(np.float32(0.0))}] * 2, config)
    for model in models:
        again = GlobalModel.from_bytes(model.site, model.to_bytes())
        assert again.layout == model.layout
        assert (len(again.layout.tensors) == 2) == tied
        assert all(type(value) is type(scale) and value.shape == () for value in list(again.state.values())[:2])
        assert float(again.state["a.scale"]) == 0
        again.encrypt(again.state, 1.0)


@pytest.mark.parametrize(("dtype", "before", "after"), [("bfloat16", 0.50294, 0.001), ("float16", 3.1e-8, 0.0)])
def test_a_variance_of_16_bits_that_is_not_negative(dtype: str, before: float, after: float) -> None:
    """Its difference is from the global one as the network had it, which is rounded."""
    model, _ = federation({"bn.running_var": torch.tensor([before])})
    update = model.encrypt({"bn.running_var": torch.tensor([after], dtype=getattr(torch, dtype))}, 1.0)
    assert update.site == "site-0"


def test_whether_a_tensor_is_floored_is_settled_by_the_first_model() -> None:
    models = federation(
        {"log.running_var": np.array([-0.5], np.float32), "bn.running_var": np.array([0.5], np.float32)}
    )
    one_round(models, [{"log.running_var": np.array([0.5]), "bn.running_var": np.array([0.5])}] * 2)
    one_round(models, [{"log.running_var": np.array([-0.25]), "bn.running_var": np.array([0.0])}] * 2)
    assert models[0].state["log.running_var"] < -0.2
    again = GlobalModel.from_bytes(models[0].site, models[0].to_bytes())
    again.encrypt({"log.running_var": np.array([-0.75]), "bn.running_var": np.array([0.0])}, 1.0)


def test_a_sum_with_its_tensors_in_another_order() -> None:
    """Without tags and signatures nothing else would tell: the header is the server's."""
    he = {"lib": "seal", "config": {"scheme": "CKKS", "poly_modulus_degree": 1024, "coeff_mod_bit_sizes": [23]}}
    he["config"]["scale_bits"] = 18
    config = secagg.Config.from_dict({"he": he, "aggregation": {"min_clients": 2, "max_clients": 2, "max_abs": 1.0}})
    keys = secagg.generate_keys(config)
    state = {"a": np.ones(3, np.float32), "b": np.full(3, 2, np.float32)}
    models = [GlobalModel(secagg.Client(config, keys.client, name), state) for name in "xy"]
    aggregator = secagg.Aggregator(config, keys.server)
    for model in models:
        aggregator.add(model.encrypt({name: value + 0.5 for name, value in state.items()}, 1.0))
    container = Container.read(aggregator.finish().to_bytes())
    container.header["layout"].reverse()
    with pytest.raises(LayoutError, match="the aggregate of round 0 is of another model .*only the order differs"):
        models[0].apply(secagg.Update.from_bytes(container.to_bytes()))


def test_what_stays_and_cannot_be_copied() -> None:
    lock = threading.Lock()
    state = {"own.meta": torch.empty(2, device="meta"), "own._extra_state": lock, "w": torch.ones(2)}
    model, _ = federation(state, configured(stay=["own.*"]))
    assert model.state["own._extra_state"] is lock
    assert model.state["own.meta"].is_meta


def test_a_model_of_arrays_in_a_network_of_torch() -> None:
    net = network()
    model, _ = federation({name: value.numpy() for name, value in net.state_dict().items()})
    with pytest.raises(LayoutError, match="one tensor with"):  # arrays that share memory are one tensor, copies are not
        GlobalModel(model.site, {name: value.numpy().copy() for name, value in net.state_dict().items()}).load(net)
    fresh = network(3)
    model.load(fresh)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in fresh.state_dict().items())


def test_a_run_id_that_is_no_text_of_any_language() -> None:
    assert federation(STATE, context="\ud800")[0].base != federation(STATE)[0].base


def test_the_state_of_another_site() -> None:
    one, other = federation(STATE)
    with pytest.raises(MismatchError, match="is that of site 'site-0', this is 'site-1'"):
        GlobalModel.from_bytes(other.site, one.to_bytes())


def test_the_names_of_a_wrapper_after_training() -> None:
    model, _ = federation(network())
    with pytest.raises(LayoutError, match="all names begin with 'module.'"):
        model.encrypt(torch.nn.DataParallel(network()).state_dict(), 1.0)
    with pytest.raises(LayoutError, match=r"lacks '.*', '.*', '.*' … \(6 tensors\): give"):
        model.encrypt({}, 1.0)


def test_the_base_of_a_model_of_16_bits_without_a_key() -> None:
    state = {"w": torch.linspace(-1, 1, 6).bfloat16(), "v": np.linspace(0, 1, 4).astype(np.float16), "n": np.int64(3)}
    model, other = federation(state, context="r")
    layout = secagg.Layout.of(state, PLAIN).widened()
    assert layout == model.layout
    assert layout.base(state, "r") == model.base
    aggregator = secagg.Aggregator(PLAIN, KEYS.server, layout=layout, base=model.base)
    for each in (model, other):
        aggregator.add(each.encrypt(each.state, 1.0))


def test_an_update_that_counts_for_nothing_is_no_payment() -> None:
    """A site whose every second update is late: what those paid back is due again, or it would drift away."""
    he = {"lib": "flashe", "config": {"value_bits": 4, "error_feedback": True, "rounding": "nearest"}}
    aggregation = {"min_clients": 2, "max_clients": 2, "max_abs": 1.0}
    config = secagg.Config.from_dict({"he": he, "aggregation": aggregation})
    one, two, late = federation({"w": np.zeros(50, np.float32)}, config, count=3)
    step, given = 1 / 7, np.zeros(50)
    draw = np.random.default_rng(1)
    for round in range(60):
        change = draw.uniform(-0.3, 0.3, 50).astype(np.float32) * step
        updates = [model.encrypt({"w": model.state["w"] + share}, 1.0) for model, share in ((one, 0), (late, change))]
        two_update = two.encrypt(two.state, 1.0)
        if round % 2:  # too late: two others are the sum
            late.withdraw()
            aggregate = add(updates[0], two_update, config=config)
        else:
            two.withdraw()
            aggregate = add(*updates, config=config)
            given += change / 2
        for model in (one, two, late):
            model.apply(aggregate)
    assert np.abs(one.state["w"] - given).max() < step  # a step is what is still to be carried, at most
