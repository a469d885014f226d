"""Attacks on updates: what is clear gives images back, what is encrypted does not, and the server reads bytes alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from secagg.bench.leakage.dense import layer_inputs
from secagg.bench.leakage.identification import identified
from secagg.bench.leakage.images import CANDIDATES, heights, slices, white_matter
from secagg.bench.leakage.inversion import gradient_cost, invert
from secagg.bench.leakage.masks import random_mask, sensitive_mask
from secagg.bench.leakage.metrics import psnr, ssim
from secagg.bench.leakage.run import measure
from secagg.bench.leakage.settings import ALL, RAW, SETTING_LIST, Row, Setting, named_rows, product_config
from secagg.bench.leakage.training import Recipe, update, updates
from secagg.bench.leakage.uploads import check_fit, encrypted
from secagg.bench.leakage.victims import Victim, lenet, make_victim
from secagg.bench.leakage.view import raw_view, server_view
from secagg.config import Config
from secagg.errors import ConfigError, DigestError, FormatError, RangeError
from secagg.setup.progress import silent

#: One image of the middle, and two others.
TRUTH = (11, 30, 42)

MODES = ("conv", "first-middle-last")

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def victim() -> Victim:
    return make_victim(lenet, 0)


@pytest.fixture(scope="module")
def states(victim: Victim) -> list[State]:
    return [update(victim, Recipe(), victim.images[number], victim.targets[number]) for number in TRUTH]


def config(encrypt: Any, **aggregation: Any) -> Config:
    numbers = {"min_clients": 3, "max_clients": 3, **aggregation}
    bits = {} if "precision" in aggregation or "max_abs" not in aggregation else {"value_bits": 12}
    he = {"lib": "flashe", "config": {"scheme": "FLASHE", **bits}}
    return Config.from_dict({"he": he, "encrypt": encrypt, "aggregation": numbers})


def rows_of(data: Mapping[str, Any], setting: str) -> dict[str, Any]:
    found = next(found for found in data["settings"] if found["name"] == setting)
    return {row["name"]: row for row in found["rows"]}


def check_order(rows: Mapping[str, Any]) -> None:
    """Raw and `conv` are read, all of it encrypted is not, and says nothing of whose it is."""
    assert rows["raw"]["ssim"] > 0.9
    assert rows["conv"]["ssim"] > 0.9
    assert rows["raw"]["identified"] == rows["conv"]["identified"] == 1
    assert rows["all"]["ssim"] < rows["mean"]["ssim"] - 0.2
    assert rows["all"]["psnr"] < rows["mean"]["psnr"]
    assert rows["all"]["identified"] is None
    assert rows["all"]["clear"] == 0
    assert 0.5 < rows["conv"]["clear"] < rows["raw"]["clear"] == 1


def test_what_is_clear_is_read_and_what_is_encrypted_is_not() -> None:
    """From real bytes of the product's own configuration; the short form of the table."""
    setting = replace(SETTING_LIST[0], steps=150, rows=(RAW, "conv", ALL))
    data = measure(2, 0, silent, settings=[setting])
    assert data["images"] == 2
    assert data["candidates"] == CANDIDATES == 60
    assert data["seconds"] > 0
    (found,) = data["settings"]
    assert found["parameters"] == 32_474
    assert [len(row["pictures"]) for row in found["rows"]] == [2] * 4
    rows = rows_of(data, "lenet")
    assert rows["conv"]["nbytes"] > rows["all"]["nbytes"] > 0
    check_order(rows)


@pytest.mark.long
def test_the_whole_table() -> None:
    data = measure(4, 0, silent)
    lenet, segresnet = rows_of(data, "lenet"), rows_of(data, "segresnet")
    check_order(lenet)
    for name in ("first-middle-last", "random-50", "sensitive-10", "sensitive-50"):
        assert lenet[name]["ssim"] > 0.9
        assert lenet[name]["identified"] == 1
    for name in ("raw", "first-middle-last"):
        assert segresnet[name]["ssim"] > 0.9
    for setting in data["settings"]:
        rows = rows_of(data, setting["name"])
        assert rows["raw"]["identified"] == rows["conv"]["identified"] == 1
        assert rows["all"]["identified"] is None
        assert rows["all"]["ssim"] < 0.1
        if setting["name"] not in ("lenet", "segresnet"):
            assert rows["raw"]["ssim"] < 0.9


# What the server sees.


@pytest.mark.parametrize("encrypt", ["all", *MODES, {"exclude": ["*.bias"]}])
def test_the_view_is_what_is_clear_and_nothing_else(victim: Victim, states: list[State], encrypt: Any) -> None:
    made = config(encrypt, max_abs=2.0, max_weight=1000)
    view = server_view(victim, encrypted(made, states))
    hidden = {
        "all": {*victim.sizes},
        "conv": {"conv1.weight", "conv2.weight", "conv3.weight"},
        "first-middle-last": {
            *("conv1.weight", "conv1.bias", "conv3.weight", "conv3.bias", "dense2.weight", "dense2.bias")
        },
    }.get(str(encrypt), {name for name in victim.sizes if name.endswith(".weight")})
    clear = [name not in hidden for name, size in victim.sizes.items() for _ in range(size)]
    assert view.seen.tolist() == clear
    true = raw_view(victim, states).values
    # The server does not know the weight, by which all values are multiplied.
    torch.testing.assert_close(view.values[:, clear], 237 * true[:, clear], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("precision", ["auto", "previous"])
def test_measured_scales_hide_the_scale_of_each_tensor_and_no_more(
    victim: Victim, states: list[State], precision: str
) -> None:
    view = server_view(victim, encrypted(config("conv", precision=precision), states))
    true = raw_view(victim, states).values
    assert len(view.places) == 7  # five biases and two dense layers
    ratios = [(view.values[:, places] / true[:, places]).nanmedian(1).values for places in view.places]
    for places, ratio in zip(view.places, ratios, strict=True):
        torch.testing.assert_close(view.values[:, places], ratio[:, None] * true[:, places], rtol=1e-5, atol=1e-6)
    assert len({round(float(ratio[0]), 3) for ratio in ratios}) > 1
    torch.testing.assert_close(view.cosines(true), torch.ones(3))


def test_damaged_bytes_are_not_read(victim: Victim, states: list[State]) -> None:
    blob = bytearray(encrypted(config("conv", max_abs=2.0), states[:1])[0])
    blob[-3000] ^= 1
    with pytest.raises(DigestError):
        server_view(victim, [bytes(blob)])
    with pytest.raises(FormatError):
        server_view(victim, [b"no update"])


def test_a_configuration_of_another_model(states: list[State]) -> None:
    with pytest.raises(
        ConfigError, match=r"'encoder\.\*' matches no tensor.*LeNet, which is .*has conv1\.weight, conv1"
    ):
        check_fit(config({"include": ["encoder.*"]}, max_abs=2.0), "LeNet", states[0])
    with pytest.raises(ConfigError, match="max_abs"):
        check_fit(config("conv", max_abs={"encoder.*": 2.0}), "LeNet", states[0])
    foreign = {"asked": Row("mine", config({"exclude": ["dense1.*"]}, max_abs=2.0))}
    with pytest.raises(ConfigError, match="SegResNet with ELU, one SGD step, which is attacked"):
        measure(1, 0, lambda what: pytest.fail(f"begun: {what}"), foreign)
    with pytest.raises(RangeError, match="beyond aggregation.max_abs"):
        encrypted(config("conv", max_abs=1e-9), states)


# The attacks.


def test_the_gradient_is_that_of_a_step(victim: Victim, states: list[State]) -> None:
    view, images = raw_view(victim, states), victim.images[list(TRUTH)]
    cost = gradient_cost(victim, view, victim.targets[list(TRUTH)])
    assert cost(images).abs().max() < 1e-5
    assert cost(images.flip(3)).min() > 1e-3
    assert cost(torch.zeros_like(images)).min() > 0.01


def test_an_attack_can_be_repeated(victim: Victim, states: list[State]) -> None:
    view = raw_view(victim, states)
    cost = gradient_cost(victim, view, victim.targets[list(TRUTH)])
    told: list[tuple[float, float]] = []
    found = [invert(cost, victim.images[:3].shape, 5, 7, lambda *done: told.append(done)) for _ in range(2)]
    assert torch.equal(*found)
    assert told == [(step, 5) for step in range(1, 6)] * 2
    assert 0 <= found[0].min() <= found[0].max() <= 1


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_the_input_of_a_dense_layer_is_told_by_a_part_of_its_gradient(
    victim: Victim, states: list[State], share: float
) -> None:
    view = raw_view(victim, states).without(random_mask(victim, share, 1))
    inputs = layer_inputs(victim, view)
    assert inputs is not None
    assert victim.features is not None
    with torch.no_grad():
        true = victim.features(victim.images[list(TRUTH)])
    known = ~inputs[0].isnan()
    assert known.float().mean() > 0.9
    alike = torch.nn.functional.cosine_similarity(inputs[:, known], true[:, known])
    assert alike.min() > 0.999


def test_without_a_dense_layer_or_its_biases_there_is_no_analytic_attack(victim: Victim, states: list[State]) -> None:
    assert layer_inputs(replace_dense(victim), raw_view(victim, states)) is None
    closed = server_view(victim, encrypted(config({"include": ["dense1.*"]}, max_abs=2.0), states))
    assert layer_inputs(victim, closed) is None


def replace_dense(victim: Victim) -> Victim:
    return Victim(victim.network, victim.images, victim.targets)


def test_identification_needs_the_true_model(victim: Victim) -> None:
    few = Victim(victim.network, victim.images[::6], victim.targets[::6], victim.features, victim.dense)
    states = updates(few, Recipe())
    view, truth = raw_view(few, states[:5]), range(5)
    assert identified(view, raw_view(few, states).values, truth) == 1
    rng = torch.Generator().manual_seed(0)
    stranger = torch.randn(view.values.shape, generator=rng)
    assert identified(view, torch.cat([stranger, view.values.flip(0)]), truth) == 0.0
    nothing = view.without(torch.ones(view.values.shape[1], dtype=torch.bool))
    assert identified(nothing, raw_view(few, states).values, truth) is None


def test_masks_hide_the_share_that_is_asked_for(victim: Victim) -> None:
    assert int(random_mask(victim, 0.5, 3).sum()) == 16_237
    assert not torch.equal(random_mask(victim, 0.5, 3), random_mask(victim, 0.5, 4))
    hidden = sensitive_mask(victim, 0.1)
    assert int(hidden.sum()) == 3247
    assert bool((sensitive_mask(victim, 0.5) | ~hidden).all())  # the more is hidden, the less is left
    assert hidden[-10:].all()  # the last biases: their derivative changes with the label the most


def test_likeness() -> None:
    image = slices(32)[:2]
    assert ssim(image, image) == pytest.approx([1, 1])
    assert psnr(image.clamp(0, 0.9) + 0.1, image.clamp(0, 0.9)) == pytest.approx([20, 20], abs=1e-3)
    noise = torch.rand(image.shape, generator=torch.Generator().manual_seed(0))
    assert max(ssim(noise, image)) < 0.1


def test_the_images_are_slices_of_one_brain() -> None:
    images, matter = slices(24), white_matter(24)
    assert images.shape == (CANDIDATES, 1, 24, 24)
    assert matter.shape == (CANDIDATES, 24, 24)
    assert 0 <= images.min() < 0.01 < 0.8 < images.max() <= 1
    assert images.mean((1, 2, 3)).min() > 0.05  # none is empty
    assert (matter.sum((1, 2)) > 5).all()
    assert np.bincount(heights()).tolist() == [6] * 10
    np.testing.assert_allclose(images, images.flip(2), atol=0.02)  # the template is mirror symmetric


def test_every_row_of_a_setting_is_there() -> None:
    rows = named_rows()
    assert {name for setting in SETTING_LIST for name in setting.rows} <= {*rows}
    assert isinstance(SETTING_LIST[0], Setting)
    assert product_config("all").lib == "seal"
    assert product_config("all").params.scheme == "BGV"
    assert all(rows[mode].config == product_config(mode) for mode in (*MODES, ALL))
