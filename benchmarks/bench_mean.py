"""Error of the weighted mean of thirty sites, each with its own update of full size."""

from __future__ import annotations

import numpy as np

import secagg

SITES = 30
LARGEST_WEIGHT = 1000


def test_weighted_mean(benchmark, report, progress, configure, keys, model, flatten_state):
    config = configure(max_weight=LARGEST_WEIGHT)
    weights = np.rint(np.geomspace(1, LARGEST_WEIGHT, SITES))
    generator = np.random.default_rng(0)
    aggregator = secagg.Aggregator(config, keys.server)
    truth = np.zeros(sum(tensor.numel() for tensor in model.values()))
    nbytes = 0

    def add_sites() -> dict[str, np.ndarray]:
        nonlocal nbytes
        for number, weight in enumerate(weights):
            progress(f"{number + 1}/{SITES}")
            state = {
                name: generator.uniform(-1, 1, tuple(tensor.shape)).astype(np.float32) for name, tensor in model.items()
            }
            truth[:] += weight * flatten_state(state).astype(np.float64)
            update = secagg.Client(config, keys.client, f"site-{number}").encrypt(state, weight=float(weight))
            nbytes += update.nbytes
            aggregator.add(update)
        return secagg.Client(config, keys.client, "reader").decrypt(aggregator.finish(), like=state)

    mean = benchmark.pedantic(add_sites)
    error = np.abs(flatten_state(mean) - truth / weights.sum()).max()
    benchmark.extra_info.update(nbytes=nbytes, max_error=error)
    row = report.measure(
        "error", float(error), f"weights {weights[0]:g} to {weights[-1]:g}, {truth.size:,} values in [−1, 1], float32"
    )
    assert row.met
