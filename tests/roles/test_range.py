"""Values and weights outside their bounds: refused by name and place, before anything is encrypted."""

from __future__ import annotations

import math
from decimal import Decimal

import numpy as np
import pytest
import torch
from federation import federate

from secagg.errors import ConfigError, RangeError

pytestmark = pytest.mark.usefixtures("kernels")


def before_encrypting(monkeypatch, federation, do):
    """Call `do` whenever blocks are about to be encrypted."""

    class Watched:
        def __init__(self, cipher):
            self.cipher = cipher

        def encrypt(self, block, plain):
            do()
            return self.cipher.encrypt(block, plain)

    begin = federation.backend.cipher
    monkeypatch.setattr(federation.backend, "cipher", lambda *args: Watched(begin(*args)))


@pytest.fixture
def untouched(lib, monkeypatch):
    """Fails the test if the backend encrypts."""

    def fail():
        raise AssertionError("something was encrypted")

    before_encrypting(monkeypatch, federate(lib), fail)


VALUES = {"over": 1.001, "under": -1.001, "NaN": math.nan, "infinity": math.inf, "minus infinity": -math.inf}


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_a_value_out_of_range(lib, value, dtype):
    bad = torch.zeros(2, 600, dtype=getattr(torch, dtype))
    bad[1, 599] = value * 1.01  # in the second block; 1 % more is over the bound in bfloat16 too
    state = {"good": torch.ones(3), "layer.bad": bad, "more": torch.ones(900)}
    why = "beyond aggregation.max_abs 1: raise max_abs" if math.isfinite(value) else "find out why training diverged"
    with pytest.raises(RangeError, match=rf"tensor 'layer.bad' has (-?1.0\d*|nan|-?inf) at \[1, 599\](,|:) {why}"):
        federate(lib).site().encrypt(state)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_a_clear_value_out_of_range(lib, value):
    """Found before the encrypted tensors are encrypted."""
    state = {"w": np.ones(5), "c": np.array([[0.5], [value]])}
    with pytest.raises(RangeError, match=r"tensor 'c' has .* at \[1, 0\]"):
        federate(lib, encrypt={"include": ["w"]}).site().encrypt(state)


@pytest.mark.usefixtures("untouched")
def test_a_scalar_out_of_range(lib):
    with pytest.raises(RangeError, match=r"tensor 's' has 1.5 at \[\]"):
        federate(lib).site().encrypt({"s": np.float32(1.5)})


@pytest.mark.usefixtures("untouched")
def test_nothing_is_written_either(lib, tmp_path):
    with pytest.raises(RangeError):
        federate(lib).site().encrypt_to(tmp_path / "update.secagg", {"w": np.array([math.nan])})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [math.nan, -1.5])
def test_a_value_that_goes_out_of_range_later(lib, tmp_path, monkeypatch, value):
    """Training that goes on while its tensors are encrypted: each value is checked once more as it is read."""
    federation = federate(lib)
    state = {"w": np.zeros(federation.codec.block_values * (federation.frame_blocks + 1))}  # more than a frame

    def train():
        state["w"][-1] = value

    before_encrypting(monkeypatch, federation, train)
    with pytest.raises(RangeError, match="changed to a value out of range while it was encrypted"):
        federation.site().encrypt_to(tmp_path / "update.secagg", state)
    assert list(tmp_path.iterdir()) == []


def test_bounds_by_pattern(lib):
    federation = federate(lib, max_abs={"default": 0.5, "*.var": 2.0})
    state = {"bn.mean": np.array([0.5]), "bn.var": np.array([2.0])}
    federation.assert_mean(federation.site().decrypt(federation.sum([state, state])), [state, state])
    for name, value in (("bn.mean", 0.51), ("bn.var", 2.01)):
        with pytest.raises(RangeError, match=f"'{name}' has {value}"):
            federation.site().encrypt(state | {name: np.array([value])})


def test_the_bound_itself_is_in_range(lib):
    federation = federate(lib)
    states = [{"w": np.array([1.0, -1.0])}] * 2
    federation.assert_mean(federation.site().decrypt(federation.sum(states)), states)


@pytest.mark.parametrize(("weight", "same"), [(0.8, True), (1.0, False)])
def test_the_next_value_above_the_bound(lib, weight, same):
    """Times the weight it may be what the bound is times the weight; it is out of range all the same."""
    site, bound = federate(lib, max_abs=0.1).site(), 0.1
    above = np.nextafter(bound, 1)
    assert (above * weight == bound * weight) == same
    site.encrypt({"w": np.array([bound, -bound])}, weight)
    for value in (above, -above):
        with pytest.raises(RangeError, match="has -?0.1 at .* beyond aggregation.max_abs 0.1"):
            site.encrypt({"w": np.array([0.0, value])}, weight)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (0, "weight is 0; it must be above 0"),
        (0.0, "weight is 0.0"),
        (-1, "weight is -1"),
        (math.nan, "weight is nan"),
        (math.inf, "weight is inf; it must be above 0 and finite"),
        (-math.inf, "weight is -inf"),
        (np.float32("nan"), "weight is nan"),
        (128, "weight 128 is over aggregation.max_weight 100: set max_weight to the largest weight of any site"),
        (100.0001, "over aggregation.max_weight"),
        (10**400, "over aggregation.max_weight"),
        (True, "weight is True; give a number"),
        (np.True_, "weight is np.True_"),
        ("128", "weight is '128'"),
        (None, "weight is None"),
        (1j, "weight is 1j"),
        (Decimal(1), "weight is Decimal"),
        ([1.0], r"weight is \[1.0\]"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_weight_that_cannot_be(lib, weight, message):
    with pytest.raises(RangeError, match=message):
        federate(lib, max_weight=100).site().encrypt({"w": np.ones(1)}, weight=weight)


def test_the_default_weight_bound_gives_the_advice(lib):
    """`max_weight` is 1 unless set, so a number of examples fails with what to do about it."""
    with pytest.raises(RangeError, match=r"128 is over aggregation.max_weight 1: set max_weight .*number of examples"):
        federate(lib).site().encrypt({"w": np.ones(1)}, weight=128)


@pytest.mark.parametrize("weight", [100, 100.0, 1e-3, np.float32(0.5), np.int64(7), np.uint8(3)], ids=repr)
def test_weights_of_any_number_type(lib, weight):
    federation = federate(lib, max_weight=100)
    states = [{"w": np.array([0.5])}, {"w": np.array([-0.25])}]
    aggregate = federation.sum(states, [weight, 100])
    federation.assert_mean(federation.site().decrypt(aggregate), states, [float(weight), 100])


@pytest.mark.parametrize("round", [-1, 2**32, 1.0, True, "0", None], ids=repr)
def test_a_round_that_cannot_be(lib, round):
    with pytest.raises(ConfigError, match="round"):
        federate(lib).site().encrypt({"w": np.ones(1)}, round=round)


@pytest.mark.parametrize("name", ["", "a b", "a/b", "..", ".", "ä", "x" * 65, "a\n", None, 7, b"site"], ids=repr)
def test_a_site_name_that_cannot_be(lib, name):
    with pytest.raises(ConfigError, match="site name"):
        federate(lib).site(name)


@pytest.mark.parametrize("name", ["a", "Site-1", "hospital.example.org", "_", ".a", "x" * 64])
def test_site_names(lib, name):
    assert federate(lib).site(name).encrypt({"w": np.ones(1)}).header.site == name
