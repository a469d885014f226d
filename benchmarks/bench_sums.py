"""Sums of quantised integers, held against the integers themselves, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

import secagg

SITES = (2, 3, 10, 30, 100, 300, 1000)
VALUES = 2000
BLOCKS = {"flashe": {"value_bits": 16}, "seal": {"scheme": "BGV", "value_bits": 16}}
SEEN: dict[str, list[int]] = {}


@pytest.mark.parametrize("lib", BLOCKS)
def test_exact(lib, benchmark, report):
    """As many sites planned as added; rounding to nearest tells what the integers must be."""

    def differing(count: int) -> int:
        he = {"lib": lib, "config": {**BLOCKS[lib], "rounding": "nearest"}}
        config = secagg.Config.from_dict({"he": he, "aggregation": {"max_clients": count, "max_abs": 1.0}})
        keys = secagg.generate_keys(config)
        aggregator = secagg.Aggregator(config, keys.server)
        generator, total = np.random.default_rng(count), np.zeros(VALUES, np.int64)
        for number in range(count):
            values = generator.uniform(-1, 1, VALUES)
            values[:2] = 1, -1  # lanes that are full, and empty
            total += np.rint(values * config.params.limit).astype(np.int64)
            aggregator.add(secagg.Client(config, keys.client, f"site-{number}").encrypt({"w": values}))
        mean = secagg.Client(config, keys.client, "reader").decrypt(aggregator.finish())["w"]
        return int((np.rint(mean * (count * config.params.limit)).astype(np.int64) != total).sum())

    SEEN[lib] = benchmark.pedantic(lambda: [differing(count) for count in SITES])
    wrong = sum(map(sum, SEEN.values())) / (len(SEEN) * len(SITES) * VALUES)
    detail = f"{', '.join(SEEN)}: {', '.join(map(str, SITES))} sites planned and added"
    assert report.measure("exact", wrong, detail).met
