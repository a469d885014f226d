"""Tensors that share storage: one tensor, sent once, under the stricter role, back under all its names."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from federation import federate

from secagg.errors import LayoutError

VALUES = np.linspace(-0.9, 0.8, 24, dtype=np.float32).reshape(4, 6)


def tied(make=np.array):
    """A state dict in which two names are one tensor, and others are not."""
    weight = make(VALUES)
    return {
        "encoder.weight": weight,
        "bias": make(VALUES[0] * 0.5),
        "decoder.weight": weight,
        "free": make(VALUES * 2 / 3),
    }


MAKERS = {
    "numpy": np.array,
    "torch": torch.tensor,
    "parameter": lambda values: torch.nn.Parameter(torch.tensor(values)),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_sent_once_and_back_under_all_names(mode, make):
    federation = federate(mode)
    states = [tied(make), tied(make)]
    first, second = federation.encrypt(states)
    layout = first.header.layout
    assert [spec.names for spec in layout.tensors] == [("encoder.weight", "decoder.weight"), ("bias",), ("free",)]
    assert layout.size("encrypted") == 24 + 6 + 24
    mean = federation.site().decrypt(federation.add([first, second]), like=states[0])
    assert list(mean) == list(states[0])
    federation.assert_mean(mean, states)
    assert np.shares_memory(np.asarray(mean["encoder.weight"]), np.asarray(mean["decoder.weight"]))
    alone = federation.site().decrypt(federation.add([first, second]))
    assert alone["encoder.weight"] is alone["decoder.weight"]
    assert federation.site().layout(alone) == layout


ENCRYPTS = {
    "the first name included": {"include": ["encoder.*"]},
    "the second name included": {"include": ["decoder.*"]},
    "the first name excluded": {"exclude": ["encoder.*"]},
    "the second name excluded": {"exclude": ["decoder.*"]},
    "another tensor included": {"include": ["free"]},
    "first-middle-last": "first-middle-last",
}


@pytest.mark.parametrize("encrypt", ENCRYPTS.values(), ids=ENCRYPTS)
def test_encrypted_if_any_name_is(encrypt):
    federation = federate("flashe", encrypt=encrypt)
    layout = federation.site().encrypt(tied()).header.layout
    (spec,) = (spec for spec in layout.tensors if "decoder.weight" in spec.names)
    assert spec.names == ("encoder.weight", "decoder.weight")
    assert spec.role == ("clear" if encrypt == {"include": ["free"]} else "encrypted")


def test_stay_beats_encrypted():
    federation = federate("flashe").but(stay=["decoder.*"])
    state = tied()
    layout = federation.site().encrypt(state).header.layout
    assert [spec.names for spec in layout.tensors] == [("bias",), ("free",)]
    mean = federation.site().decrypt(federation.sum([state, state]), like=state)
    assert mean["encoder.weight"] is state["encoder.weight"]
    assert list(mean) == list(state)


def test_sites_that_tie_and_sites_that_do_not():
    federation = federate("flashe")
    aggregator = federation.aggregator()
    one, other = federation.sites(2)
    aggregator.add(one.encrypt(tied()))
    state = {name: value.copy() for name, value in tied().items()}
    with pytest.raises(LayoutError, match="'encoder.weight' is .* expected .*one tensor with 'decoder.weight'"):
        aggregator.add(other.encrypt(state))


def test_a_part_in_common_is_refused_before_training():
    state = {"whole": VALUES, "part": VALUES[1:]}
    for call in (federate("flashe").site().layout, federate("flashe").site().encrypt):
        with pytest.raises(LayoutError, match="'whole' and 'part' have a part of their memory in common"):
            call(state)
    with pytest.raises(LayoutError, match="have a part"):
        federate("flashe").but(stay=["part"]).site().layout(state)


# Copies, which no memory tells.


def test_a_clear_copy_of_what_is_encrypted():
    federation = federate("flashe", encrypt={"include": ["a"]})
    site, values = federation.site(), VALUES
    for copy in (values.copy(), values.reshape(-1).copy()):
        with pytest.raises(LayoutError, match="tensor 'b' is clear and has the very values of 'a', which is encrypted"):
            site.encrypt({"a": values, "b": copy})
    for other in (values * 0.5, values.astype(np.float64) * 0.5, np.zeros_like(values)):
        site.encrypt({"a": values, "b": other})
    constant = np.full(24, 0.25, np.float32)
    site.encrypt({"a": constant, "b": constant.copy()})  # which says nothing
    site.encrypt({"a": np.float32(0.5), "b": np.float32(0.5)})
    assert site.layout({"a": values, "b": values.copy()})  # at first, layers may be alike, and differences not
    federate("flashe").site().encrypt({"a": values, "b": values.copy()})
    clear = federate("flashe", encrypt={"exclude": ["a", "b"]}).site()
    clear.encrypt({"a": values, "b": values.copy(), "c": VALUES[0] * 1})


def test_a_clear_copy_in_bfloat16():
    values = torch.tensor(VALUES).bfloat16()
    site = federate("flashe", encrypt={"include": ["a"]}).site()
    with pytest.raises(LayoutError, match="has the very values of 'a'"):
        site.encrypt({"a": values, "b": values.clone()})


def test_a_difference_made_tensor_by_tensor():
    """What is one tensor is told by the model: its layout is given with the difference."""
    federation = federate("flashe", encrypt={"include": ["encoder.*"]})
    site, model = federation.site(), tied()
    layout = site.layout(model)
    apart = {name: value * 0.5 for name, value in model.items()}
    update = site.encrypt(apart, layout=layout)
    assert update.header.layout == layout
    assert [spec.names for spec in layout.role("encrypted")] == [("encoder.weight", "decoder.weight")]
    with pytest.raises(
        LayoutError, match="'encoder.weight' and 'decoder.weight' are one in `layout`, and have different"
    ):
        site.encrypt({**apart, "decoder.weight": apart["decoder.weight"] + 1}, layout=layout)
    for state, match in (
        ({name: value for name, value in apart.items() if name != "bias"}, "'bias' .* is missing"),
        ({**apart, "more": np.ones(2)}, "'more' is one too many"),
        ({**apart, "bias": np.ones(6)}, "'bias' is float64"),
        ("text", "a state dict is needed"),
    ):
        with pytest.raises(LayoutError, match=match):
            site.encrypt(state, layout=layout)
    with pytest.raises(LayoutError, match="is not what the configuration makes of the model"):
        federate("flashe").site().encrypt(apart, layout=layout)


def test_a_clear_copy_in_another_precision():
    site = federate("flashe", encrypt={"include": ["a"]}).site()
    with pytest.raises(LayoutError, match="has the very values of 'a'"):
        site.encrypt({"a": VALUES, "b": VALUES.astype(np.float64)})


def test_a_copy_of_what_stays():
    """Memory does not tell; it may be sent under no other name, not even encrypted."""
    for encrypt in ({"include": ["x"]}, "all"):
        site = federate("flashe", encrypt=encrypt).but(stay=["own.*"]).site()
        state = {"own.weight": VALUES, "out.weight": VALUES.copy(), "x": VALUES * 0.5}
        with pytest.raises(
            LayoutError, match="'out.weight' is sent and has the very values of 'own.weight', which stays"
        ):
            site.encrypt(state)
        site.encrypt(state | {"out.weight": VALUES * 0.25})
        constant = np.ones_like(VALUES)
        site.encrypt(state | {"own.weight": constant, "out.weight": constant.copy()})
        site.encrypt(state | {"own.weight": "anything"})
