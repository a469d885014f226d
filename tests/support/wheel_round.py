"""What cibuildwheel runs on each wheel: a round of three sites, with the kernels that were built."""

from __future__ import annotations

import numpy as np

import secagg
import secagg_ext

assert secagg_ext.IMPLEMENTATION == "cython", "the wheel has its kernels"
config = secagg.Config.from_dict(
    {
        "he": {"lib": "flashe", "config": {"value_bits": 16}},
        "aggregation": {"min_clients": 3, "max_clients": 3, "max_abs": 1.0},
    }
)
keys = secagg.generate_keys(config)
sites = [secagg.Client(config, keys.client, f"site-{number}") for number in range(3)]
aggregator = secagg.Aggregator(config, keys.server)
for number, site in enumerate(sites):
    blob = site.encrypt({"w": np.full(1000, number / 4, np.float32)}).to_bytes()
    aggregator.add(secagg.Update.from_bytes(blob))
mean = sites[0].decrypt(aggregator.finish())["w"]
np.testing.assert_allclose(mean, 0.25, atol=2.0**-14)
print(f"a round of {', '.join(aggregator.sites)} with the kernels of {secagg_ext.__file__}")
