"""Metrics beside a model: whatever patterns say, however they change, a mean is right or there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

import secagg
from secagg.errors import ConfigError, LayoutError
from secagg.site import GlobalModel

WEIGHTS = {"a": 2.0, "b": 6.0, "c": 1.0}


def configured(aggregation: Mapping[str, Any], metrics: Sequence[str] = ("dice", "loss"), **options: Any) -> Any:
    """A federation's configuration and keys, and the model at each site."""
    config = secagg.Config.from_dict(
        {
            "he": {"lib": "flashe", "config": {"value_bits": 16}},
            "aggregation": {"min_clients": 2, "max_clients": 4, "max_weight": 8.0, **aggregation},
            "metrics": list(metrics),
            **options,
        }
    )
    keys = secagg.generate_keys(config)
    return config, keys, {name: GlobalModel(secagg.Client(config, keys.client, name), state()) for name in WEIGHTS}


FIXED = {"max_abs": {"default": 1.0, "secagg.metrics*": 4.0}}


def state(value: float = 0.5) -> dict[str, Any]:
    return {"conv.weight": np.full((40, 5, 3), value, np.float32), "head.weight": np.full((2, 30), value, np.float32)}


def round_of(
    config: Any, keys: Any, models: Mapping[str, GlobalModel], given: Mapping[str, Any], calibrate: str = "abc"
) -> dict[str, float]:
    """Let all sites take part in a round, and return the means; those in `calibrate` have told how large values are."""
    one = next(iter(models.values()))
    local = {
        name: {key: value + np.float32(0.01) for key, value in model.state.items()} for name, model in models.items()
    }
    scales = None
    if one.calibrates:
        calibrating = secagg.Aggregator(config, keys.server, round=one.round, kind="calibration")
        for name in calibrate:
            calibrating.add(models[name].calibrate(local[name], WEIGHTS[name], given[name]))
        scales = calibrating.finish()
    aggregator = secagg.Aggregator(config, keys.server, round=one.round)
    for name, model in models.items():
        aggregator.add(model.encrypt(local[name], WEIGHTS[name], scales, given[name]))
    aggregate = aggregator.finish()
    for model in models.values():
        model.apply(aggregate)
    return one.metrics


def mean(given: Mapping[str, Mapping[str, float]], name: str) -> float:
    return sum(WEIGHTS[site] * given[site][name] for site in WEIGHTS) / sum(WEIGHTS.values())


@pytest.mark.parametrize("error_feedback", [True, False])
@pytest.mark.parametrize(
    "dice",
    [
        [0.0, 0.0, 0.0, 0.3, 0.8, 0.9, 0.9],  # as segmentation begins
        [0.01, 0.02, 0.9, 0.9, 0.1, 0.1],
        [0.001, 100.0, 100.0, 0.5, 0.5, 0.5],
    ],
)
def test_what_is_too_large_for_the_scales_has_no_mean_in_place_of_a_wrong_one(
    dice: list[float], error_feedback: bool
) -> None:
    """Scales follow from the round before; what is clipped must not come back in the mean of a later model."""
    he = {"lib": "flashe", "config": {"value_bits": 16, "error_feedback": error_feedback, "overflow": "clip"}}
    config, keys, models = configured({"precision": "previous"}, he=he)
    told = 0
    for value in dice:
        given = {"a": {"dice": value, "loss": 1.0}} | {site: {"dice": value / 2, "loss": 0.5} for site in "bc"}
        found = round_of(config, keys, models, given)
        for name in found:
            assert found[name] == pytest.approx(mean(given, name), abs=max(dice) * 2**-14), name
        told += "dice" in found
    assert found.keys() == {"dice", "loss"}  # known again, once it is as large as in the round before
    assert told >= 3


def test_a_site_that_has_missed_the_calibration_spoils_no_mean() -> None:
    config, keys, models = configured({"precision": "auto"})
    given = {"a": {"dice": 0.9, "loss": 0.5}} | {site: {"dice": 0.01, "loss": 0.5} for site in "bc"}
    assert round_of(config, keys, models, given, calibrate="bc").keys() == {"loss"}
    assert round_of(config, keys, models, given) == {
        name: pytest.approx(mean(given, name), rel=2**-12) for name in ("dice", "loss")
    }


@pytest.mark.parametrize("aggregation", [{"precision": "auto"}, {"precision": "previous"}, FIXED])
@pytest.mark.parametrize("value", [1e30, -1e300, float("inf"), float("nan")])
def test_what_cannot_be_sent_is_told_before(aggregation: Mapping[str, Any], value: float) -> None:
    _, _, models = configured(aggregation)
    assert not models["a"].measurable("dice", value, 2.0)
    assert models["a"].measurable("dice", 4.0, 2.0)


@pytest.mark.parametrize("stay", [["*d*"], ["head*"]])
@pytest.mark.parametrize("encrypt", ["all", "conv", {"include": ["*weight"], "exclude": ["*metrics*"]}])
def test_patterns_say_nothing_of_metrics(stay: list[str], encrypt: Any) -> None:
    """Those of `stay` match names of metrics beside those that they are meant for."""
    config, keys, models = configured(FIXED, ["dice", "loss"], stay=stay, encrypt=encrypt)
    given = {"a": {"dice": 0.5, "loss": -1.0}} | {site: {"dice": 0.25, "loss": 2.0} for site in "bc"}
    found = round_of(config, keys, models, given)
    assert found == {name: pytest.approx(mean(given, name), abs=1e-2) for name in ("dice", "loss")}
    roles = {spec.name: spec.role for spec in models["a"].layout.tensors}
    assert "head.weight" not in roles
    assert {role for name, role in roles.items() if name.startswith("secagg.metrics")} == {"encrypted"}


@pytest.mark.parametrize("pattern", ["secagg*", "secagg.metrics*", "secagg.metrics.dice", "*metrics*"])
def test_patterns_that_match_metrics_alone(pattern: str) -> None:
    """One would keep at home what is to be sent; the other would leave all of the model in the clear."""
    with pytest.raises(ConfigError, match="stay: pattern .* matches no tensor"):
        configured(FIXED, stay=[pattern])
    with pytest.raises(ConfigError, match="would encrypt no tensor of this model"):
        configured(FIXED, encrypt={"include": [pattern]})


def test_a_model_that_stays_whole_is_none() -> None:
    with pytest.raises(LayoutError, match="no float tensor to average"):
        configured(FIXED, stay=["*"])


@pytest.mark.parametrize("name", ["", "a" * 257, "a\nb", "\x00", "\ud800"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(ConfigError, match="metrics names .*; use printable text of 1 to 256 characters"):
        configured(FIXED, [name])


@pytest.mark.parametrize("name", ["a" * 256, ".", "a.b", "ü", "a b", "*", "secagg.metrics", "weight"])
def test_names_that_are_odd(name: str) -> None:
    config, keys, models = configured(FIXED, [name])
    given = {site: {name: 0.5} for site in WEIGHTS}
    assert round_of(config, keys, models, given) == {name: pytest.approx(0.5, abs=1e-2)}
