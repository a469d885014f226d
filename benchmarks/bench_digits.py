"""Softmax regression on scikit-learn's digits: ten sites, twenty rounds, under every preset and without encryption."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
from sklearn.datasets import load_digits

import secagg
from secagg.scheme.presets import PRESETS

SITES, ROUNDS, STEPS, RATE = 10, 20, 20, 0.5
LOST: dict[str, float] = {}
State = Mapping[str, np.ndarray]


@pytest.fixture(scope="module")
def data() -> tuple[list[tuple[np.ndarray, np.ndarray]], tuple[np.ndarray, np.ndarray]]:
    """Parts of the sites, of different sizes, and a held-out fifth."""
    pixels, digits = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(digits))
    pixels, digits = pixels[order] / 16, digits[order]
    cut = len(digits) // 5
    edges = np.cumsum(np.linspace(1, 3, SITES))
    ends = cut + np.rint(edges / edges[-1] * (len(digits) - cut)).astype(int)
    parts = [slice(start, end) for start, end in zip([cut, *ends[:-1]], ends, strict=True)]
    return [(pixels[part], digits[part]) for part in parts], (pixels[:cut], digits[:cut])


@pytest.mark.parametrize("preset", PRESETS)
def test_accuracy(preset, data, benchmark, message, report):
    parts, held_out = data
    aggregation = {"min_clients": SITES, "max_clients": SITES, "max_abs": 2.0, "max_weight": 400}
    config = secagg.Config.from_dict({"he": {"preset": preset}, "aggregation": aggregation})
    keys = secagg.generate_keys(config)
    sites = [secagg.Client(config, keys.client, f"site-{number}") for number in range(SITES)]
    weights = [len(digits) for _, digits in parts]
    sizes: set[int] = set()

    def encrypted(changes: list[State], round: int) -> State:
        aggregator = secagg.Aggregator(config, keys.server, round)
        for site, change, weight in zip(sites, changes, weights, strict=True):
            update = site.encrypt(change, weight, round)
            aggregator.add(update)
        sizes.add(update.nbytes)
        return sites[0].decrypt(aggregator.finish())

    def raw(changes: list[State], round: int) -> State:
        return {name: np.average([change[name] for change in changes], 0, weights) for name in changes[0]}

    plain = train(parts, held_out, raw)
    ours = benchmark.pedantic(lambda: train(parts, held_out, encrypted))
    assert plain > 90  # a model that has learned
    message(max(sizes))
    LOST[preset] = plain - ours
    detail = f"{', '.join(f'{name} {plain - lost:.2f} %' for name, lost in LOST.items())}, raw {plain:.2f} %"
    report.measure("accuracy", max(map(abs, LOST.values())), detail)


def train(parts: list, held_out: tuple, average: Callable[[list[State], int], State]) -> float:
    """Return the accuracy in percent after all rounds; sites send differences from the global model."""
    model = {"weight": np.zeros((64, 10), np.float32), "bias": np.zeros(10, np.float32)}
    for round in range(ROUNDS):
        change = average([local(model, *part) for part in parts], round)
        model = {name: (model[name] + change[name]).astype(np.float32) for name in model}
    pixels, digits = held_out
    return 100 * float(np.mean((pixels @ model["weight"] + model["bias"]).argmax(1) == digits))


def local(model: State, pixels: np.ndarray, digits: np.ndarray) -> State:
    """Return what some steps of gradient descent on a site's part change."""
    weight, bias = model["weight"].astype(np.float64), model["bias"].astype(np.float64)
    for _ in range(STEPS):
        scores = pixels @ weight + bias
        chances = np.exp(scores - scores.max(1, keepdims=True))
        chances /= chances.sum(1, keepdims=True)
        chances[np.arange(len(digits)), digits] -= 1
        weight -= RATE * pixels.T @ chances / len(digits)
        bias -= RATE * chances.mean(0)
    return {
        "weight": (weight - model["weight"]).astype(np.float32),
        "bias": (bias - model["bias"]).astype(np.float32),
    }
