"""The global model of a site from round to round, of torch tensors and of NumPy arrays, with real keys and updates."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import secagg
from secagg.errors import (
    ConfigError,
    DigestError,
    FormatError,
    KeyMismatchError,
    LayoutError,
    RangeError,
    RoundMismatchError,
    SecAggError,
    StateError,
    VerificationError,
)
from secagg.scheme.codec import codec_for
from secagg.site import GlobalModel
from secagg.site.snapshot import Snapshot
from secagg.wire.container import digest

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = {"a": 3, "b": 5}


def configured(**options: Any) -> secagg.Config:
    he = {"lib": "flashe", "config": {"value_bits": 16, **options}}
    aggregation = {"min_clients": 2, "max_clients": 4, "max_abs": 1.0, "max_weight": 10}
    return secagg.Config.from_dict({"he": he, "aggregation": aggregation})


CONFIG = configured()
KEYS = secagg.generate_keys(CONFIG)


def numpy_state(value: float = 0.25) -> dict[str, Any]:
    """Matrices, a scalar, nothing, and what stays at the site."""
    return {
        "w": np.linspace(-value, value, 12, dtype=np.float32).reshape(3, 4),
        "scale": np.array(value, np.float32),
        "wide": np.full(5, value, np.float64),
        "none": np.zeros((0, 2), np.float32),
        "steps": np.array(7, np.int64),
        "mask": np.array([True, False]),
    }


def torch_state(value: float = 0.25) -> dict[str, Any]:
    return {name: torch.from_numpy(array) for name, array in numpy_state(value).items()}


STATES = pytest.mark.parametrize("make", [numpy_state, torch_state])


def client(name: str, config: secagg.Config = CONFIG, keys: Any = KEYS) -> secagg.Client:
    return secagg.Client(config, keys.client, name)


def model_of(name: str, state: Mapping[str, Any], **options: Any) -> GlobalModel:
    return GlobalModel(client(name), state, **options)


def arrays(state: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in state.items()}


def assert_same(state: Mapping[str, Any], other: Mapping[str, Any], *, own: bool = True) -> None:
    """Bit for bit, in order, dtype and library; but for the site's own tensors unless `own`."""
    assert list(state) == list(other)
    for name, value in state.items():
        assert type(value) is type(other[name])
        one, two = np.asarray(value), np.asarray(other[name])
        assert (one.dtype, one.shape) == (two.dtype, two.shape)
        if own or one.dtype.kind == "f":
            np.testing.assert_array_equal(one.reshape(-1).view(np.uint8), two.reshape(-1).view(np.uint8))


def trained(state: Mapping[str, Any], seed: int, scale: float = 0.01) -> dict[str, Any]:
    """What a site makes of a state: other floats, one step more, in another order."""
    draw = np.random.default_rng(seed)
    local = dict(state)
    for name, value in state.items():
        if np.asarray(value).dtype.kind == "f":
            noise = draw.uniform(-scale, scale, tuple(value.shape))
            local[name] = value + (torch.from_numpy(noise).to(value.dtype) if torch.is_tensor(value) else noise)
    local["steps"] = local["steps"] + 1
    return dict(reversed(local.items()))


def aggregated(*updates: secagg.Update, round: int = 0) -> secagg.Update:
    aggregator = secagg.Aggregator(CONFIG, KEYS.server, round=round)
    for update in updates:
        aggregator.add(update)
    return secagg.Update.from_bytes(aggregator.finish().to_bytes())


def advance(*models: GlobalModel, seed: int = 0) -> secagg.Update:
    """One round of sites in step; returns the aggregate, which all of them have applied."""
    updates = []
    for number, model in enumerate(models):
        local = trained(model.state, seed + number)
        updates.append(model.encrypt(local, WEIGHTS[model.site.name]))
    result = aggregated(*updates, round=models[0].round)
    for model in models:
        assert model.apply(result)
    return result


def mean_error() -> float:
    """What quantisation may change in the mean of both sites."""
    weight = sum(WEIGHTS.values()) / CONFIG.aggregation.max_weight
    return codec_for(CONFIG.params, CONFIG.aggregation).mean_error(len(WEIGHTS), weight)


# Rounds.


@STATES
def test_rounds_are_federated_averaging(make: Callable[[], dict[str, Any]]) -> None:
    models = {name: model_of(name, make()) for name in WEIGHTS}
    exact = {name: value.astype(np.float64) for name, value in arrays(make()).items() if value.dtype.kind == "f"}
    for round in range(3):
        updates, total = [], dict.fromkeys(exact, 0.0)
        for seed, (name, model) in enumerate(models.items()):
            before = model.state
            local = trained(before, 10 * round + seed)
            for key in exact:
                moved = np.asarray(local[key]).astype(np.float64) - np.asarray(before[key])
                total[key] = total[key] + WEIGHTS[name] / sum(WEIGHTS.values()) * moved
            updates.append(model.encrypt(local, WEIGHTS[name]))
        result = aggregated(*updates, round=round)
        before = arrays(models["a"].state)
        for model in models.values():
            assert model.apply(result)
            assert (model.round, model.base) == (round + 1, result.next_base)
        assert_same(models["a"].state, models["b"].state)
        for key in exact:
            rounding = 4 * np.finfo(np.float32).eps
            error = arrays(models["a"].state)[key] - before[key].astype(np.float64) - total[key]
            assert np.abs(error).max(initial=0) <= mean_error() + rounding


@STATES
def test_integers_stay_own(make: Callable[[], dict[str, Any]]) -> None:
    one, two = (model_of(name, make()) for name in WEIGHTS)
    updates = []
    for model, steps in ((one, 3), (two, 5)):
        local = trained(model.state, steps)
        local["steps"] = local["steps"] * 0 + steps
        updates.append(model.encrypt(local, 1))
    result = aggregated(*updates)
    for model, steps in ((one, 3), (two, 5)):
        assert model.apply(result)
        assert int(model.state["steps"]) == steps
        assert model.state["steps"].dtype == make()["steps"].dtype
        np.testing.assert_array_equal(np.asarray(model.state["mask"]), [True, False])


def test_what_fails_to_be_encrypted_leaves_the_own_integers() -> None:
    model = model_of("a", numpy_state())
    before = model.state
    with pytest.raises(RangeError, match="'w'"):
        model.encrypt(trained(model.state, 0, scale=9.0), 1)
    with pytest.raises(RangeError, match="weight"):
        model.encrypt(trained(model.state, 0), 11)
    assert_same(model.state, before)


def test_to_a_file(tmp_path: Path) -> None:
    one, two = (model_of(name, numpy_state()) for name in WEIGHTS)
    one.encrypt_to(tmp_path / "up", trained(one.state, 1), 3)
    assert int(one.state["steps"]) == 8
    with secagg.Update.open(tmp_path / "up") as update:
        header = update.header
        assert (header.site, header.round, header.base, header.layout) == ("a", 0, one.base, one.layout)
        assert one.apply(aggregated(update, two.encrypt(two.state, 5)))


@STATES
def test_what_is_given_and_taken_is_a_copy(make: Callable[[], dict[str, Any]]) -> None:
    given = make()
    model = model_of("a", given)
    given["w"] += 1
    state = model.state
    state["w"] += 1
    state["steps"] += 1
    del state["mask"]
    assert_same(model.state, make())


def test_libraries_of_tensors_can_mix_and_16_bits_are_held_as_32() -> None:
    state = {
        "half": np.full(3, 0.1, np.float16),
        "brain": torch.full((2,), 0.1, dtype=torch.bfloat16),
        "flag": torch.tensor(True),
    }
    model = model_of("a", state)
    assert {name: type(value) for name, value in model.state.items()} == {
        "half": np.ndarray,
        "brain": torch.Tensor,
        "flag": torch.Tensor,
    }
    assert model.state["half"].dtype == np.float32
    assert model.state["brain"].dtype == torch.float32
    np.testing.assert_array_equal(model.state["half"], state["half"].astype(np.float32))
    assert torch.equal(model.state["brain"], state["brain"].float())
    assert [spec.dtype for spec in model.layout.tensors] == ["float32", "float32", "bool"]


# Differences.


def reference(local: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """(local − start) as torch computes it: the network held `start` in its own dtype."""
    return local.detach().to("cpu", start.dtype) - start.to(local.dtype).to(start.dtype)


@pytest.mark.parametrize("held", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_difference_is_torchs_own(held: torch.dtype, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(4)
    start = torch.randn(10_000, generator=draw, dtype=held) * 2.0 ** torch.randint(-30, 15, (10_000,), generator=draw)
    start[:3] = torch.tensor([0.0, -0.0, 1.0])
    for local in (start.to(dtype), (start * 1.01).to(dtype), torch.zeros_like(start).to(dtype)):
        model = model_of("a", {"w": start})
        expected = reference(local, start)
        assert torch.equal(model.difference({"w": local})["w"], expected)
        if dtype is not torch.bfloat16:
            of_arrays = model_of("a", {"w": start.numpy()}).difference({"w": local.numpy()})["w"]
            np.testing.assert_array_equal(of_arrays, expected.numpy())
    # What has learnt nothing sends zeros, whatever 16 bits lose of the global model.
    assert not model_of("a", {"w": start}).difference({"w": start.to(dtype)})["w"].any()


def test_ties_of_bfloat16_are_rounded_as_torch_does() -> None:
    bits = np.arange(0x3F80_0000, 0x3F86_0000, 0x1000, dtype=np.uint32)
    start = torch.from_numpy(np.concatenate([bits, bits - 1, bits + 1, bits | 0x8000_0000]).view(np.float32))
    difference = model_of("a", {"w": start}).difference({"w": torch.zeros_like(start, dtype=torch.bfloat16)})
    assert torch.equal(difference["w"], -start.to(torch.bfloat16).float())


def test_float64_that_arithmetic_made_is_cast_back() -> None:
    model = model_of("a", numpy_state())
    local = model.state
    local["w"] = local["w"] - np.float64(0.01) * np.ones((3, 4))
    local["scale"] = local["scale"] * 2.0  # a NumPy scalar
    assert local["w"].dtype == np.float64
    difference = model.difference(local)
    assert difference["w"].dtype == difference["scale"].dtype == np.float32
    np.testing.assert_array_equal(difference["w"], local["w"].astype(np.float32) - model.state["w"])
    assert float(difference["scale"]) == 0.25
    assert model.encrypt(local, 1).header.layout == model.layout


@pytest.mark.parametrize(("make", "other"), [(numpy_state, torch_state), (torch_state, numpy_state)])
def test_what_is_trained_may_be_of_the_other_library(
    make: Callable[[float], dict[str, Any]], other: Callable[[float], dict[str, Any]]
) -> None:
    model = model_of("a", make(0.25))
    difference = model.difference(other(0.5))
    assert_same(difference, model_of("b", make(0.25)).difference(make(0.5)))
    assert model.encrypt(other(0.5), 1).header.layout == model.layout


@STATES
def test_any_order(make: Callable[[], dict[str, Any]]) -> None:
    model, local = model_of("a", make()), trained(make(), 1)
    assert list(local) != list(make())
    difference = model.difference(local)
    assert list(difference) == list(make())
    assert_same(difference, model.difference({name: local[name] for name in make()}))


def _without(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if name not in ("w", "mask")}


def _with(state: dict[str, Any]) -> dict[str, Any]:
    return state | {"head.bias": np.zeros(3, np.float32)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without, "lacks 'mask', 'w':"),
        (_with, "also has 'head.bias'"),
        (lambda state: state | {"w": np.zeros((4, 3), np.float32)}, r"'w' is float32\[4, 3\] .* float32\[3, 4\]"),
        (lambda state: state | {"w": np.zeros((3, 4), np.int32)}, "'w' is int32"),
        (lambda state: state | {"steps": np.array(1.0)}, "'steps' is float64"),
        (lambda state: state | {"mask": np.array([0, 2])}, "'mask' is int64 .* values that bool has not"),
        (lambda state: state | {"w": [0.0]}, "'w' is a list"),
        (lambda state: state | {"w": torch.zeros(3, 4, device="meta")}, "'w' is on the device meta"),
        (list, "a mapping of names"),
    ],
)
def test_what_is_no_state_of_this_model(change: Callable[[Any], Any], message: str) -> None:
    model = model_of("a", numpy_state())
    for call in (model.difference, lambda local: model.encrypt(local, 1)):
        with pytest.raises(LayoutError, match=message):
            call(change(numpy_state()))
    assert_same(model.state, numpy_state())


def test_integers_of_another_width_that_fit() -> None:
    local = numpy_state() | {"steps": np.array(8, np.int32), "mask": np.array([0, 1])}
    difference = model_of("a", numpy_state()).difference(local)
    assert difference["steps"].dtype == np.int64
    assert difference["mask"].tolist() == [False, True]


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_what_is_not_finite_is_refused_when_it_is_encrypted(value: float) -> None:
    model = model_of("a", numpy_state())
    with pytest.raises(RangeError, match="'w'"):
        model.encrypt(model.state | {"w": np.full((3, 4), value)}, 1)


# Aggregates that are not the next one.


def test_the_aggregate_that_was_applied_last_is_known() -> None:
    one, two = (model_of(name, numpy_state()) for name in WEIGHTS)
    first = advance(one, two)
    before = one.state
    assert not one.apply(first)
    assert one.round == 1
    assert_same(one.state, before)
    second = advance(one, two, seed=7)
    assert not one.apply(second)
    with pytest.raises(RoundMismatchError, match="of round 0, not of round 2"):
        one.apply(first)
    third = aggregated(*(model.encrypt(model.state, 1) for model in (one, two)), round=2)
    restored = model_of("a", before, round=1, base=first.next_base)
    with pytest.raises(RoundMismatchError, match="of round 2, not of round 1"):
        restored.apply(third)
    assert restored.apply(second)
    assert restored.apply(third)


def test_another_aggregate_of_the_round_before_is_no_repetition() -> None:
    one, two = (model_of(name, numpy_state()) for name in WEIGHTS)
    other = aggregated(*(model_of(name, numpy_state()).encrypt(numpy_state(), 1) for name in WEIGHTS))
    advance(one, two)
    before = one.state
    with pytest.raises(RoundMismatchError):
        one.apply(other)
    assert_same(one.state, before)


def test_a_sum_from_another_global_model_is_refused() -> None:
    others = [model_of(name, numpy_state(0.5)) for name in WEIGHTS]
    result = aggregated(*(other.encrypt(other.state, 1) for other in others))
    model = model_of("a", numpy_state())
    with pytest.raises(VerificationError, match="another global model"):
        model.apply(result)
    assert (model.round, model.base) == (0, client("a").base(numpy_state()))
    assert_same(model.state, numpy_state())


def test_a_sum_without_the_update_that_a_receipt_is_for() -> None:
    one, two, three = (model_of(name, numpy_state()) for name in ("a", "b", "c"))
    updates = [model.encrypt(trained(model.state, seed), 1) for seed, model in enumerate((one, two, three))]
    receipt = secagg.Receipt.of(updates[2], secagg.Identity.generate())
    with pytest.raises(VerificationError, match="lists no update of site 'c'"):
        three.apply(aggregated(*updates[:2]))
    three.withdraw()  # what is acknowledged must be there all the same
    with pytest.raises(VerificationError, match="has left it out"):
        three.apply(aggregated(*updates[:2]), receipt)
    assert three.round == 0
    assert three.apply(aggregated(*updates), receipt)


def test_a_damaged_aggregate_or_one_of_another_key_changes_nothing() -> None:
    one, two = (model_of(name, numpy_state()) for name in WEIGHTS)
    result = aggregated(*(model.encrypt(trained(model.state, 3), 1) for model in (one, two)))
    blob = bytearray(result.to_bytes())
    blob[len(blob) - 200] ^= 1
    stranger = GlobalModel(client("a", keys=secagg.generate_keys(CONFIG)), numpy_state())
    for model, aggregate, error in (
        (one, secagg.Update.from_bytes(bytes(blob)), FormatError),
        (stranger, result, KeyMismatchError),
        (model_of("a", {"v": np.zeros(3, np.float32)}, base=one.base), result, LayoutError),
    ):
        before, base = model.state, model.base
        with pytest.raises(error):
            model.apply(aggregate)
        assert (model.round, model.base) == (0, base)
        assert_same(model.state, before)
    assert one.apply(result)


# Beginning.


def test_the_base_of_a_first_model_and_of_a_later_one() -> None:
    assert model_of("a", numpy_state()).base == model_of("b", torch_state()).base == client("a").base(numpy_state())
    half = {"w": np.full(3, 0.1, np.float16)}
    assert model_of("a", half).base == client("a").base({"w": half["w"].astype(np.float32)})
    with pytest.raises(StateError, match="round 3 needs its base"):
        model_of("a", numpy_state(), round=3)
    assert model_of("a", numpy_state(), round=3, base=b"3" * 32).base == b"3" * 32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"round": -1, "base": bytes(32)}, "round is -1"),
        ({"round": 1 << 32, "base": bytes(32)}, "rounds are whole numbers"),
        ({"round": 1, "base": b"x"}, "give 32 bytes"),
        ({"base": "text"}, "give 32 bytes"),
    ],
)
def test_a_round_or_a_base_that_is_none(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GlobalModel(client("a"), numpy_state(), **arguments)


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        ([1.0], LayoutError, "a mapping of names"),
        ({"w": "text"}, LayoutError, "'w'"),
        ({"w": np.zeros(3, np.complex64)}, LayoutError, "'w'"),
        ({"": np.zeros(3)}, LayoutError, "name"),
    ],
)
def test_a_model_that_cannot_be_aggregated(state: Any, error: type[SecAggError], message: str) -> None:
    with pytest.raises(error, match=message):
        model_of("a", state)


def test_a_model_that_the_configuration_does_not_fit() -> None:
    config = secagg.Config.from_dict({**CONFIG.to_dict(), "encrypt": {"include": ["encoder.*"]}})
    with pytest.raises(ConfigError, match=r"pattern 'encoder.\*' matches no tensor"):
        GlobalModel(client("a", config), numpy_state())


@STATES
def test_a_late_site_goes_on_from_the_stored_model(make: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    one, two = (model_of(name, make()) for name in WEIGHTS)
    advance(one, two)
    one.save_model(tmp_path / "model")
    second = advance(one, two, seed=5)
    late = model_of("c", make(0.75) | {"steps": make()["steps"] * 6})
    with secagg.Update.open(tmp_path / "model") as model:
        late.load_model(model)
    assert (late.round, int(late.state["steps"])) == (1, 42)
    assert late.apply(second)
    assert not late.apply(second)
    assert_same(late.state, one.state, own=False)
    assert (late.round, late.base, int(late.state["steps"])) == (one.round, one.base, 42)


def test_a_stored_model_that_does_not_fit(tmp_path: Path) -> None:
    model = model_of("a", numpy_state())
    model.site.encrypt_model(tmp_path / "without base", model.state, round=1)
    model_of("b", {"v": np.zeros(3, np.float32)}).save_model(tmp_path / "another layout")
    for name, error in (("without base", VerificationError), ("another layout", LayoutError)):
        with secagg.Update.open(tmp_path / name) as stored, pytest.raises(error):
            model.load_model(stored)
    assert model.round == 0
    assert_same(model.state, numpy_state())


# Export.


@STATES
def test_export_and_import(make: Callable[[], dict[str, Any]]) -> None:
    one, two = (model_of(name, make()) for name in WEIGHTS)
    advance(one, two)
    again = GlobalModel.from_bytes(client("a"), one.to_bytes())
    assert_same(again.state, one.state)
    assert (again.round, again.base, again.layout) == (1, one.base, one.layout)
    assert again.to_bytes() == one.to_bytes()
    advance(again, two, seed=3)


def test_names_that_are_no_names_of_files() -> None:
    state = {name: np.full(2, index, np.float32) for index, name in enumerate(("../x", "a/b.npy", "header.json", "0"))}
    again = GlobalModel.from_bytes(client("a"), model_of("a", state).to_bytes())
    assert_same(again.state, state)


FRESH = """
import sys
from pathlib import Path
import secagg
from secagg.site import GlobalModel

folder = Path(sys.argv[1])
config = secagg.Config.load(folder / "config.yaml")
site = secagg.Client(config, secagg.load_key(folder / "client.key"), "a")
model = GlobalModel.from_bytes(site, (folder / "model").read_bytes())
assert "torch" not in sys.modules
update = secagg.Update.open(folder / "update")
assert (update.header.round, update.header.base) == (model.round, model.base)
with secagg.Update.open(folder / "aggregate") as aggregate:
    assert model.apply(aggregate)
    assert not model.apply(aggregate)
(folder / "model").write_bytes(model.to_bytes())
if sys.argv[2] == "torch_state":
    try:
        model.state
    except secagg.SecAggError as error:
        assert "import torch first" in str(error)
    import torch
    assert all(isinstance(value, torch.Tensor) for value in model.state.values())
"""


@STATES
def test_a_fresh_process_goes_on_in_the_middle_of_a_round(make: Callable[[], dict[str, Any]], tmp_path: Path) -> None:
    one, two = (model_of(name, make()) for name in WEIGHTS)
    advance(one, two)
    one.encrypt_to(tmp_path / "update", trained(one.state, 8), 3)
    (tmp_path / "model").write_bytes(one.to_bytes())
    (tmp_path / "config.yaml").write_text(json.dumps(CONFIG.to_dict()), encoding="utf-8")
    KEYS.client.save(tmp_path / "client.key")
    with secagg.Update.open(tmp_path / "update") as update:
        result = aggregated(update, two.encrypt(trained(two.state, 9), 5), round=1)
    result.save(tmp_path / "aggregate")
    command = [sys.executable, "-c", FRESH, str(tmp_path), make.__name__]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert one.apply(result)
    assert two.apply(result)
    again = GlobalModel.from_bytes(client("a"), (tmp_path / "model").read_bytes())
    assert_same(again.state, one.state)
    assert int(again.state["steps"]) == 9
    advance(again, two, seed=4)


FED_BACK = configured(value_bits=6, rounding="nearest", error_feedback=True)
FED_BACK_KEYS = secagg.generate_keys(FED_BACK)


def fed_back(config: secagg.Config = FED_BACK) -> secagg.Client:
    return client("a", config, FED_BACK_KEYS)


def test_what_error_feedback_carries_goes_along() -> None:
    """Of the round that has been encrypted, in whose middle the process may end, and of the next."""
    one = GlobalModel(fed_back(), numpy_state())
    for seed in range(3):
        one.encrypt(trained(one.state, seed), 3)
        again = GlobalModel.from_bytes(fed_back(), one.to_bytes())
        assert again.site.carry() == one.site.carry() != b""
        assert again.to_bytes() == one.to_bytes()
        for model in (one, again):  # the same round again
            model.encrypt(trained(one.state, seed + 1), 3)
        assert again.site.carry() == one.site.carry()
        one.round = again.round = again.round + 1
    for model in (one, again):
        model.encrypt(trained(one.state, 9), 3)
    assert again.site.carry() == one.site.carry()


def test_an_export_before_the_first_update_has_nothing_to_carry() -> None:
    """And says so: nothing is lost, nothing is said, as warnings are errors here."""
    one = GlobalModel(fed_back(), numpy_state(), round=3, base=bytes(32))
    again = GlobalModel.from_bytes(fed_back(), one.to_bytes())
    again.encrypt(trained(again.state, 0), 3)


def test_an_export_whose_carry_the_configuration_does_not_fit() -> None:
    """The global model is not lost for that."""
    one = GlobalModel(fed_back(), numpy_state())
    one.encrypt(trained(one.state, 0), 3)
    config = configured(value_bits=6, rounding="nearest")
    with pytest.warns(UserWarning, match="what error feedback carried is lost: .*error_feedback, which .* has not"):
        again = GlobalModel.from_bytes(fed_back(config), one.to_bytes())
    assert_same(again.state, one.state)
    again.encrypt(trained(again.state, 1), 3)


def test_who_takes_a_stored_model_is_told_what_is_lost_if_it_was_there_before(tmp_path: Path) -> None:
    """Nobody can tell a site that comes late from one that comes back, but the site itself."""
    one = GlobalModel(client("b", FED_BACK, FED_BACK_KEYS), numpy_state(), round=3, base=bytes(32))
    one.save_model(tmp_path / "of another")
    GlobalModel(fed_back(), numpy_state(), round=3, base=bytes(32)).save_model(tmp_path / "own")
    late = GlobalModel(fed_back(), numpy_state())
    with secagg.Update.open(tmp_path / "of another") as model:
        late.load_model(model)
    late.site.restore_carry(b"")
    late.encrypt(trained(late.state, 0), 3)
    carry = late.site.carry()
    with secagg.Update.open(tmp_path / "of another") as model:
        late.load_model(model)  # it has missed rounds: what it carries is due all the same
    assert late.site.carry() == carry
    for stored in ("own", "of another"):
        back = GlobalModel(fed_back(), numpy_state())
        with secagg.Update.open(tmp_path / stored) as model:
            back.load_model(model)
        with pytest.warns(UserWarning, match="earlier updates, if there are any, is lost"):
            back.encrypt(trained(back.state, 0), 3)


def test_export_for_another_configuration() -> None:
    config = secagg.Config.from_dict({**CONFIG.to_dict(), "encrypt": {"include": ["encoder.*"]}})
    with pytest.raises(ConfigError, match="matches no tensor"):
        GlobalModel.from_bytes(client("a", config), model_of("a", numpy_state()).to_bytes())


BLOB = model_of("a", {"w": np.arange(20, dtype=np.float32), "n": np.array(3)}).to_bytes()


@given(st.integers(0, 8 * len(BLOB) - 1))
def test_a_flipped_bit_is_found(bit: int) -> None:
    blob = bytearray(BLOB)
    blob[bit // 8] ^= 1 << bit % 8
    with pytest.raises(DigestError):
        GlobalModel.from_bytes(client("a"), bytes(blob))


@given(st.integers(0, len(BLOB) - 1))
def test_a_truncated_export_is_found(length: int) -> None:
    with pytest.raises(FormatError):
        GlobalModel.from_bytes(client("a"), BLOB[:length])


@pytest.mark.parametrize("blob", [b"", b"x" * 100, BLOB + b"\0", BLOB[32:], pickle.dumps({"w": 1}), "text", None])
def test_something_else_is_no_export(blob: Any) -> None:
    with pytest.raises(FormatError):
        GlobalModel.from_bytes(client("a"), blob)


def sealed(change: Callable[[dict[str, bytes]], object], compression: int = zipfile.ZIP_STORED) -> bytes:
    """An export whose files somebody has changed who knows how the digest is made."""
    with zipfile.ZipFile(BytesIO(BLOB)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    body = stream.getvalue()
    return digest(b"secagg global model v1", body) + body


def header(**changes: Any) -> Callable[[dict[str, bytes]], object]:
    def change(files: dict[str, bytes]) -> None:
        fields = json.loads(files["header.json"]) | changes
        files["header.json"] = json.dumps({name: value for name, value in fields.items() if value != "gone"}).encode()

    return change


def array(value: Any, name: str = "0.npy") -> Callable[[dict[str, bytes]], object]:
    def change(files: dict[str, bytes]) -> None:
        stream = BytesIO()
        np.lib.format.write_array(stream, value, allow_pickle=True)
        files[name] = stream.getvalue()

    return change


def huge(files: dict[str, bytes]) -> None:
    """An array that claims 4 TiB, as its header does, and has 80 bytes."""
    header(layout=[[["w"], "float32", [1 << 40], "encrypted", False], [["n"], "int64", [], "local", False]])(files)
    files["0.npy"] = files["0.npy"].replace(b"(20,), }" + b" " * 11, b"(1099511627776,), }")


FAULTS: dict[str, Callable[[dict[str, bytes]], object]] = {
    "an earlier version": header(version=4),
    "a later version": header(version=6),
    "a loss that is none": header(lost=1),
    "more fields": header(more=[1]),
    "fewer fields": header(base="gone"),
    "a negative round": header(round=-1),
    "a round that is none": header(round=1.5),
    "a base that is none": header(base="ab"),
    "16-bit floats": header(
        layout=[[["w"], "float16", [20], "encrypted", False], [["n"], "int64", [], "local", False]]
    ),
    "two of one name": header(layout=[[["w"], "float32", [20], "encrypted", False]] * 2),
    "another shape": header(
        layout=[[["w"], "float32", [4, 5], "encrypted", False], [["n"], "int64", [], "local", False]]
    ),
    "one tensor less": header(layout=[[["w"], "float32", [20], "encrypted", False]]),
    "one tensor more": header(
        layout=[[["w"], "float32", [20], "encrypted", False], *([[name], "int64", [], "local", False] for name in "nm")]
    ),
    "torch's, but not there": header(torch=["x"]),
    "a name less": header(names=["w"]),
    "a name twice": header(names=["w", "n", "w"]),
    "a tied name that is no name": header(
        layout=[[["w", "v"], "float32", [20], "encrypted", False], [["n"], "int64", [], "local", False]]
    ),
    "one that stays, and is not there": header(stays=[["s", "float32", []]]),
    "one that stays, of no dtype": header(stays=[["n", "complex64", []]]),
    "a nonce that is none": header(own=["ab"]),
    "scales of another model": header(scales="2020"),
    "scales that are none": header(scales="xy"),
    "torch's, but no names": header(torch=[["w"]]),
    "a header that is a list": lambda files: files.update({"header.json": b"[]"}),
    "a header that is no JSON": lambda files: files.update({"header.json": b"{"}),
    "a deep header": lambda files: files.update({"header.json": b"[" * 100_000}),
    "no header": lambda files: files.pop("header.json"),
    "no array": lambda files: files.pop("0.npy"),
    "an array that is none": lambda files: files.update({"0.npy": b"x" * 200}),
    "an array that is cut": lambda files: files.update({"0.npy": files["0.npy"][:-1]}),
    "an array that is longer": lambda files: files.update({"0.npy": files["0.npy"] + b"\0"}),
    "another dtype": array(np.arange(20, dtype=np.int32)),
    "another byte order": array(np.arange(20, dtype=">f4")),
    "Fortran's order": array(np.asfortranarray(np.ones((4, 5), np.float32))),
    "pickled objects": array(np.array([{}] * 20, dtype=object)),
    "a file more": array(np.zeros(1), "3.npy"),
    "no carry": lambda files: files.pop("2.npy"),
    "a carry that is no bytes": array(np.zeros(0), "2.npy"),
    "a carry in rows": array(np.zeros((2, 2), np.uint8), "2.npy"),
    "a carry that is none": array(np.zeros(9, np.uint8), "2.npy"),
    "a file between": lambda files: files.update({"4.npy": files.pop("1.npy")}),
    "an array that claims more than there is": huge,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_was_made_to_break_a_reader(fault: str) -> None:
    with pytest.raises(FormatError) as caught:
        GlobalModel.from_bytes(client("a"), sealed(FAULTS[fault]))
    assert not isinstance(caught.value, DigestError)


def test_little_that_unpacks_to_much() -> None:
    blob = sealed(lambda files: files.update({"header.json": b" " * (1 << 24)}), zipfile.ZIP_DEFLATED)
    with pytest.raises(FormatError, match="longer than the whole"):
        GlobalModel.from_bytes(client("a"), blob)


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_what_is_compressed_is_not_unpacked(compression: int) -> None:
    with pytest.raises(FormatError, match="is compressed"):
        GlobalModel.from_bytes(client("a"), sealed(lambda files: None, compression))


def test_the_changes_of_these_tests_reach_the_reader() -> None:
    assert Snapshot.from_bytes(sealed(lambda files: None)).to_bytes() == BLOB


def test_what_is_stored_is_not_printed() -> None:
    """A traceback with locals, or a debugger's log, shows no value of a model and nothing of the carry."""
    config = secagg.Config.from_dict({**CONFIG.to_dict(), "stay": ["x"]})
    state = {"w": np.full(3, 0.123456, np.float32), "x": np.full(2, 0.654321)}
    snapshot = Snapshot.from_bytes(GlobalModel(client("a", config), state).to_bytes())
    shown = repr(replace(snapshot, carry=b"residual"))
    assert "round=0" in shown
    assert not any(text in shown for text in ("0.123456", "0.654321", "residual"))
