"""What stays at a site by the configuration, what cannot be sent, and what is found before training."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from container import Container
from federation import federate

import secagg
from secagg.errors import ConfigError, LayoutError, PrivacyWarning, RangeError

STATE = {"net.weight": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4), "net.bias": np.ones(3, np.float32)}
OWN = {
    "minus infinity": np.full((4, 4), -np.inf, np.float32),
    "not a number": np.array([np.nan, 1]),
    "an object": {"any": ["thing"]},
    "None": None,
    "bytes": b"extra state",
    "a lazy parameter": torch.nn.UninitializedParameter(),
    "a sparse tensor": torch.eye(3).to_sparse(),
    "complex": np.ones(3, complex),
    "bfloat16": torch.ones(3, dtype=torch.bfloat16),
    "an integer": np.int64(3),
}


@pytest.mark.parametrize("own", OWN.values(), ids=OWN)
def test_it_is_not_sent_and_comes_back(lib, own):
    plain = federate(lib)
    federation = plain.but(stay=["*.own"])
    state = {"net.own": own} | STATE
    layout = federation.site().layout(state)
    assert [spec.name for spec in layout.tensors] == list(STATE)
    mean = federation.site().decrypt(federation.sum([state, state]), like=state)
    assert mean["net.own"] is own
    assert list(mean) == list(state)
    plain.assert_mean({name: mean[name] for name in STATE}, [STATE, STATE])
    assert list(federation.site().decrypt(federation.sum([state, state]))) == list(STATE)


def test_sites_may_differ_in_it():
    plain = federate("flashe")
    federation = plain.but(stay=["head.*"])
    states = [STATE | {"head.weight": np.ones(classes)} for classes in (2, 5)]
    mean = federation.site().decrypt(federation.sum(states), like=states[1])
    plain.assert_mean({name: mean[name] for name in STATE}, [STATE] * 2)


def test_a_server_does_not_take_what_is_to_stay():
    plain = federate("flashe")
    strict = plain.but(stay=["net.bias"])
    with pytest.raises(LayoutError, match="another layout than the configuration makes it: tensor 'net.bias' is"):
        strict.aggregator().add(plain.site().encrypt(STATE))


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"stay": ["nett.*"]}, "stay: pattern 'nett.\\*' matches no tensor"),
        ({"nonnegative": ["nett.*"]}, "nonnegative: pattern 'nett.\\*' matches no tensor"),
        ({"stay": ["net.weight"], "nonnegative": ["net.weight"]}, "nonnegative: pattern 'net.weight' matches no"),
    ],
)
def test_a_pattern_that_matches_nothing(config, match):
    with pytest.raises(ConfigError, match=match):
        federate("flashe").but(**config).site().layout(STATE)


@pytest.mark.parametrize("key", ["stay", "nonnegative"])
@pytest.mark.parametrize("value", ["w", {"w": 1}, None, [3], [""]])
def test_what_is_no_list_of_patterns(key, value):
    with pytest.raises(ConfigError, match=key):
        secagg.Config.from_dict({"he": {"preset": "exact"}, key: value})


def test_the_keys_round_trip():
    config = federate("flashe").but(stay=["a.*"], nonnegative=["b"]).config
    assert config.to_dict()["stay"] == ["a.*"]
    assert config.to_dict()["nonnegative"] == ["b"]
    assert secagg.Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


# Nothing to average.

INTEGERS = {
    "integers": {"histogram": np.arange(5), "flag": np.bool_(True)},
    "nothing": {},
    "all stays": STATE,
}


@pytest.mark.parametrize("state", INTEGERS.values(), ids=INTEGERS)
def test_a_state_without_a_float_tensor(state):
    """A site's own histogram came back to it as the mean."""
    federation = federate("flashe")
    if state is STATE:
        federation = federation.but(stay=["net.*"])
    site = federation.site()
    for call in (site.layout, site.encrypt, site.base):
        with pytest.raises(LayoutError, match="no float tensor to average.*convert what is to be averaged"):
            call(state)


# What is found before training.


@pytest.mark.parametrize("value", [-np.inf, np.inf, np.nan])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_values_that_no_difference_has(value, dtype):
    state = STATE | {"mask": np.array([0, value], dtype)}
    with pytest.raises(RangeError, match=r"'mask' has -?(inf|nan) at \[1\].*stay: \['mask'\]"):
        federate("flashe").site().layout(state)
    assert federate("flashe").but(stay=["mask"]).site().layout(state)
    assert (
        federate("flashe")
        .site()
        .decrypt(federate("flashe").sum([STATE | {"mask": np.zeros(2, dtype)}] * 2), like=state)
    )  # whose values do not matter


def test_what_is_a_checkpoint_names_the_state_in_it():
    with pytest.raises(LayoutError, match=r"looks like a checkpoint: give the state dict in it, checkpoint\['own'\]"):
        federate("flashe").site().layout(STATE | {"own": {"a": 1}})


@pytest.mark.parametrize("value", [None, torch.nn.UninitializedParameter(), torch.eye(2).to_sparse()])
def test_what_is_no_tensor_names_the_way_out(value):
    with pytest.raises(LayoutError, match=r"stay: \['own'\] in the configuration"):
        federate("flashe").site().layout(STATE | {"own": value})


WRAPPED = {
    "DataParallel": {f"module.{name}": value for name, value in STATE.items()},
    "AveragedModel": {"n_averaged": np.int64(3)} | {f"module.{name}": value for name, value in STATE.items()},
    "torch.compile": {f"_orig_mod.{name}": value for name, value in STATE.items()},
    "both": {f"module._orig_mod.{name}": value for name, value in STATE.items()},
    "Opacus": {f"_module.{name}": value for name, value in STATE.items()},
    "a compiled part": {"head.weight": np.ones(2)} | {f"net._orig_mod.{name}": value for name, value in STATE.items()},
}


@pytest.mark.parametrize("state", WRAPPED.values(), ids=WRAPPED)
def test_names_of_a_wrapped_network(state):
    with pytest.raises(LayoutError, match=r"as a wrapper does it.*network_state\(network\)"):
        federate("flashe").site().layout(state)


def test_names_that_only_look_so():
    state = {"module.weight": np.ones(2), "head.module.weight": np.ones(3), "orig_mod.weight": np.ones(3)}
    assert federate("flashe").site().layout(state)


def test_only_the_order_differs():
    federation = federate("flashe")
    turned = dict(reversed(STATE.items()))
    aggregator = federation.aggregator()
    aggregator.add(federation.site("a").encrypt(STATE))
    with pytest.raises(LayoutError, match="only the order differs: 'net.bias' stands where 'net.weight' is expected"):
        aggregator.add(federation.site("b").encrypt(turned))
    mean = federation.site().decrypt(federation.sum([STATE, STATE]), like=turned)
    assert list(mean) == list(turned)
    federation.assert_mean({name: mean[name] for name in STATE}, [STATE, STATE])


def test_a_head_with_room_for_all_sites(monkeypatch):
    """With tens of thousands of tensors, the head of an update fit and that of the sum did not: found by `layout`."""
    for module in ("container", "header"):
        monkeypatch.setattr(f"secagg.wire.{module}.MAX_HEADER_NBYTES", 10_000)  # the same with fewer

    def state(count: int) -> dict[str, np.ndarray]:
        return {f"{'x' * 64}.{index:03}": np.zeros(1, np.float32) for index in range(count)}

    federation = federate("flashe").but(max_clients=20)
    site = federation.site()
    assert site.layout(state(2))
    most = next(count for count in range(2, 200) if not fits(site, state(count + 1)))
    sites = [federation.site("s" * 60 + f"-{index:03}") for index in range(20)]
    aggregate = federation.add(site.encrypt(state(most), base=bytes(32)) for site in sites)
    assert 9_000 < len(aggregate.header.head) < 10_048
    assert secagg.Update.from_bytes(aggregate.to_bytes()).header == aggregate.header
    few = federate("flashe")  # whose sums list four
    assert fits(few.site(), state(most + 1))
    with pytest.raises(LayoutError, match="do not fit the header of a sum"):
        site.encrypt(state(most + 1))
    container = Container.read(few.site().encrypt(state(most + 1)).to_bytes())
    container.header["aggregation"]["max_clients"] = 20  # from a site that does not look
    with pytest.raises(LayoutError, match="do not fit the header of a sum"):
        federation.aggregator().admit(secagg.Header.from_head(container.head))


def fits(site: secagg.Client, state: dict[str, np.ndarray]) -> bool:
    try:
        site.layout(state)
    except LayoutError:
        return False
    return True


def test_decrypt_without_like_gives_what_like_takes(lib):
    federation = federate(lib)
    state = STATE | {"half": np.ones(3, np.float16), "brain": torch.ones(2, dtype=torch.bfloat16), "n": np.int64(3)}
    aggregate = federation.sum([state, state])
    mean = federation.site().decrypt(aggregate)
    assert list(mean) == ["net.weight", "net.bias", "half", "brain"]
    again = federation.site().decrypt(aggregate, like=mean)
    for name, value in mean.items():
        assert again[name].dtype == value.dtype
        np.testing.assert_array_equal(again[name], value)


def test_what_is_in_the_clear_is_said_once():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PrivacyWarning)  # of two sites
        site, closed = federate("flashe", encrypt={"include": ["net.weight"]}).site(), federate("flashe").site()
    with pytest.warns(PrivacyWarning, match="1 of 2 float tensors, 3 of 15 values, are sent in the clear.*'net.bias'"):
        site.layout(STATE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        site.encrypt(STATE)
        closed.encrypt(STATE)
