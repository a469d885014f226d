"""Error of the weighted mean of thirty sites, each with its own update of full size."""

from __future__ import annotations

import json
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

import numpy as np
import pytest
import random_site

import secagg
from secagg.scheme.codec import codec_for

SITES = 30
LARGEST_WEIGHT = 1000
ERRORS: dict[str, str] = {}


@pytest.mark.parametrize("backend", ["tenseal-sums", "seal-sums", "pyfhel-sums"])
def test_sums_only(backend, benchmark, message, report, configure, make_keys, flat, flatten_state):
    """CKKS with a modulus for additions only; a part of the model is enough to see its noise."""
    config, keys = configure(backend), make_keys(backend)
    state = {"w": flat[:200_000]}
    aggregator = secagg.Aggregator(config, keys.server)

    nbytes = 0

    def mean_of_sites() -> dict[str, np.ndarray]:
        nonlocal nbytes
        for number in range(SITES):
            update = secagg.Client(config, keys.client, f"site-{number}").encrypt(state)
            nbytes = update.nbytes
            aggregator.add(update)
        return secagg.Client(config, keys.client, "reader").decrypt(aggregator.finish())

    mean = benchmark.pedantic(mean_of_sites)
    message(nbytes, mean, state)
    error = float(np.abs(flatten_state(mean) - state["w"].astype(np.float64)).max())
    bound = codec_for(config.params, config.aggregation).mean_error(SITES, float(SITES))
    ERRORS[backend] = f"{backend} {error:.1e} (bound {bound:.1e})"
    worst = max(error, *(float(text.split()[1]) for text in ERRORS.values()))
    assert error <= bound + 2.0**-24
    assert report.measure("error-sums", worst, ", ".join(ERRORS.values())).met


def test_weighted_mean(benchmark, message, report, progress, configure, keys, folder, flat, flatten_state):
    config = configure(max_weight=LARGEST_WEIGHT)
    weights = np.rint(np.geomspace(1, LARGEST_WEIGHT, SITES))
    aggregator = secagg.Aggregator(config, keys.server)
    nbytes = 0

    def mean_of_sites() -> dict[str, np.ndarray]:
        nonlocal nbytes
        text = json.dumps(config.to_dict())
        # Nothing is timed against anything here, so the sites share the cores.
        with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=get_context("spawn")) as pool:
            sites = [pool.submit(random_site.encrypt, folder, text, *site) for site in enumerate(weights.tolist())]
            for site in as_completed(sites):
                path = site.result()
                with secagg.Update.open(path) as update:
                    nbytes = update.nbytes
                    aggregator.add(update)
                path.unlink()
                progress(f"{len(aggregator.sites)}/{SITES}")
        return secagg.Client(config, keys.client, "reader").decrypt(aggregator.finish())

    mean = flatten_state(benchmark.pedantic(mean_of_sites))
    truth = np.zeros(flat.size)
    for number, weight in enumerate(weights):
        truth += weight * flatten_state(random_site.values(folder, number)).astype(np.float64)
    error = float(np.abs(mean - truth / weights.sum()).max())
    message(nbytes, mean, truth / weights.sum())
    benchmark.extra_info["max_error"] = error
    detail = f"weights {weights[0]:g} to {weights[-1]:g}, {flat.size:,} values in [−1, 1], float32"
    assert report.measure("error", error, detail).met
