"""Partial encryption: what `encrypt` leaves clear travels as fixed-point words and is averaged all the same."""

from __future__ import annotations

import numpy as np
import pytest
from container import Container, fraction_bits
from federation import LARGE, MODES, federate, orders

from secagg.errors import ConfigError

pytestmark = pytest.mark.usefixtures("kernels")

SHAPES = {
    "stem.conv.weight": (2, 1, 3, 3),
    "stem.conv.bias": (2,),
    "body.0.weight": (2, 2, 3),
    "body.0.norm": (2, 2),
    "body.1.weight": (4, 4),
    "head.weight": (3, 2, 1),
    "head.bias": (),
}
CHOICES = {
    "all": ("all", set(SHAPES)),
    "conv": ("conv", {"stem.conv.weight", "body.0.weight", "head.weight"}),
    "first-middle-last": (
        "first-middle-last",
        {"stem.conv.weight", "stem.conv.bias", "body.1.weight", "head.weight", "head.bias"},
    ),
    "include": ({"include": ["*.weight"]}, {name for name in SHAPES if name.endswith("weight")}),
    "exclude": ({"exclude": ["body.*"]}, {name for name in SHAPES if not name.startswith("body")}),
    "both": (
        {"include": ["*.weight", "head.*"], "exclude": ["body.?.*"]},
        {"stem.conv.weight", "head.weight", "head.bias"},
    ),
}


def make_states(count=3):
    rng = np.random.default_rng(7)
    return [
        {name: rng.uniform(-1, 1, shape).astype(np.float32) for name, shape in SHAPES.items()}
        | {"head.steps": np.int64(site)}
        for site in range(count)
    ]


@pytest.mark.parametrize(("encrypt", "encrypted"), CHOICES.values(), ids=CHOICES)
def test_roles_and_mean(mode, encrypt, encrypted):
    federation = federate(mode, encrypt=encrypt)
    states, weights = make_states(), [1.0, 0.2, 0.6]
    aggregate = federation.sum(states, weights)
    roles = {spec.name: spec.role for spec in aggregate.header.layout.tensors}
    assert roles.pop("head.steps") == "local"
    assert {name for name, role in roles.items() if role == "encrypted"} == encrypted
    assert {name for name, role in roles.items() if role == "clear"} == set(SHAPES) - encrypted
    federation.assert_mean(federation.site().decrypt(aggregate, like=states[0]), states, weights)


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 3 * 4096])
def test_clear_blocks(mode, size):
    federation = federate(mode, encrypt={"exclude": ["c*"]})
    rng = np.random.default_rng(size)
    states = [{"c.1": rng.uniform(-1, 1, size), "w": np.ones(2), "c.2": rng.uniform(-1, 1, 3)} for _ in range(2)]
    aggregate = federation.sum(states)
    assert aggregate.header.blocks("clear") == (size + 3 + 4095) // 4096
    federation.assert_mean(federation.site().decrypt(aggregate), states)


def test_clear_tensors_are_added_exactly(lib):
    """The words are the sum of the sites' fixed-point words in Python's integers, whatever the order of adding.

    They are in units of the bound of a weighted value: `max_abs` times `max_weight`.
    """
    federation = federate(lib, encrypt={"include": ["w"]}, max_weight=4)
    states = [{"w": np.ones(1), "c": value} for value in np.random.default_rng(1).uniform(-1, 1, (3, 100))]
    weights = [4.0, 1.5, 0.375]  # fractions of max_weight that are exact in binary
    updates = [
        site.encrypt(state, weight) for site, state, weight in zip(federation.sites(3), states, weights, strict=True)
    ]
    places = fraction_bits(federation.config.aggregation.to_dict())
    sums = [
        sum(
            round(float(state["c"][i]) * (weight / 4) * 2**places)
            for state, weight in zip(states, weights, strict=True)
        )
        for i in range(100)
    ]
    for order in orders(updates):
        words = np.frombuffer(Container.read(federation.add(order).to_bytes()).payloads[1], "<i8")
        assert words[:100].tolist() == sums
        assert not words[100:].any()


def test_clear_means_are_equal_to_the_bit_in_any_order(mode):
    federation = federate(mode, encrypt={"include": ["w"]})
    updates = federation.encrypt([{"w": np.ones(1), "c": c} for c in np.random.default_rng(2).uniform(-1, 1, (3, 100))])
    means = [federation.site().decrypt(federation.add(order))["c"].tobytes() for order in orders(updates)]
    assert len(set(means)) == 1


def test_clear_sums_of_the_largest_values(mode):
    """As many sites as are planned for, each with the largest values that it may have: nothing wraps."""
    federation = federate(mode, LARGE, encrypt={"include": ["w"]}, max_clients=4, max_abs=2.0**30)
    states = [{"w": np.full(1, 2.0**30), "c": np.array([2.0**30, -(2.0**30), 1.0])}] * 4
    federation.assert_mean(federation.site().decrypt(federation.sum(states)), states)


@pytest.mark.parametrize("mode", [mode for mode, (_, precision) in MODES.items() if precision == "auto"])
def test_clear_values_beyond_what_was_measured(mode):
    """No residual takes them: there is room for 2**16 times the bound, and what is beyond is clipped."""
    federation = federate(mode, encrypt={"include": ["w"]})
    sites = federation.sites(3)
    scales = federation.add(site.calibrate({"w": np.ones((2, 2)), "c": np.ones(3)}) for site in sites[:2])
    late = {"w": np.ones((2, 2)), "c": np.array([5.0, -(2.0**16), 2.0**20])}
    states = [{"w": np.ones((2, 2)), "c": np.ones(3)}] * 2 + [late]
    aggregate = federation.add(
        site.encrypt(state, calibration=scales) for site, state in zip(sites, states, strict=True)
    )
    mean = federation.site().decrypt(aggregate)["c"]
    np.testing.assert_allclose(mean, np.array([7.0, 2 - 2.0**16, 2 + 2.0**16]) / 3, rtol=2.0**-38)


@pytest.mark.parametrize(
    ("encrypt", "message"),
    [
        ({"include": ["stem.*", "hed.*"]}, "'hed.*' matches no tensor"),
        ({"exclude": ["head.biass"]}, "'head.biass' matches no tensor"),
        ({"include": ["head.steps"]}, "'head.steps' matches no tensor"),  # integers are never sent
        ({"include": ["STEM.*"]}, "'STEM.*' matches no tensor"),
        ({"exclude": ["*"]}, "would encrypt no tensor"),
        ({"include": ["head.*"], "exclude": ["*.weight", "head.bias"]}, "would encrypt no tensor"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_pattern_that_matches_nothing(lib, encrypt, message):
    with pytest.raises(ConfigError) as caught:
        federate(lib, encrypt=encrypt).site().encrypt(make_states(1)[0])
    assert message in str(caught.value)


@pytest.mark.parametrize("choice", ["conv", "first-middle-last"])
def test_a_choice_that_encrypts_nothing(lib, choice):
    with pytest.raises(ConfigError, match="would encrypt no tensor"):
        federate(lib, encrypt=choice).site().encrypt({"a.w": np.ones((2, 2, 2)), "a.weight": np.ones(2)})


def test_a_pattern_of_max_abs_that_matches_nothing(lib):
    federation = federate(lib, max_abs={"default": 1.0, "*.running_vra": 1.5})
    with pytest.raises(ConfigError, match=r"'\*.running_vra' matches no tensor"):
        federation.site().encrypt(make_states(1)[0])


def test_max_abs_without_a_default(lib):
    federation = federate(lib, max_abs={"stem.*": 1.0})
    with pytest.raises(ConfigError, match=r"no pattern for tensor 'body.0.weight'; add one, or a default"):
        federation.site().encrypt(make_states(1)[0])


def test_two_bounds_for_one_tensor(lib):
    federation = federate(lib, max_abs={"default": 1.0, "stem.*": 1.5, "*.bias": 1.2})
    with pytest.raises(ConfigError, match=r"'stem.conv.bias' matches stem.\*, \*.bias with different numbers"):
        federation.site().encrypt(make_states(1)[0])
