"""What a round means in bytes, whatever the configuration makes of the tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import secagg
from secagg.errors import ConfigError
from secagg.setup.sizes import sizes_of
from secagg.wire.layout import Layout

SITES = 3
#: What becomes of a tensor, and so the header, follows from names and dtypes.
STATE = {
    "conv.weight": np.full((8, 4, 3, 3), 0.5, np.float32),
    "norm.running_mean": np.full(8, 0.5, np.float32),
    "norm.running_var": np.full(8, 0.5, np.float32),
    "norm.num_batches_tracked": np.asarray(3),
    "head.weight": np.full((5000, 2), 0.5, np.float16),
    "site.scale": np.full(3, 0.5, np.float64),
}
CONFIGS: dict[str, dict[str, Any]] = {
    "auto": {"he": {"preset": "smallest"}},
    "previous": {"he": {"preset": "smallest"}, "aggregation": {"precision": "previous"}},
    "partly": {"he": {"preset": "smallest"}, "encrypt": "conv"},
    "partly, fixed": {
        "he": {"preset": "smallest"},
        "encrypt": {"exclude": ["head.*"]},
        "stay": ["site.*"],
        "nonnegative": ["head.*"],
        "aggregation": {"max_abs": {"default": 1.0, "conv.*": 2.0}, "max_weight": 1e6},
    },
}


@pytest.mark.parametrize("block", CONFIGS.values(), ids=CONFIGS)
def test_sizes_are_exact(block: dict[str, Any]) -> None:
    config = secagg.Config.from_dict({**block, "aggregation": {"max_clients": 5, **block.get("aggregation", {})}})
    keys = secagg.generate_keys(config)
    clients = [secagg.Client(config, keys.client, f"site-{number}") for number in range(1, SITES + 1)]
    up, down, scales = 0, 0, None
    if config.aggregation.precision == "auto":
        sent = [client.calibrate(STATE) for client in clients]
        scales = total(config, keys.server, sent, "calibration")
        up, down = len(sent[0].to_bytes()), len(scales.to_bytes())
    updates = [client.encrypt(STATE, calibration=scales) for client in clients]
    up, down = up + len(updates[0].to_bytes()), down + len(total(config, keys.server, updates, "update").to_bytes())
    found = sizes_of(config, Layout.of(STATE), SITES)  # of a model as a file has it
    assert (found.up_nbytes, found.down_nbytes) == (up, down)
    assert found == sizes_of(config, clients[0].layout(STATE), SITES)


def total(config: secagg.Config, key: Any, updates: list[secagg.Update], kind: str) -> secagg.Update:
    aggregator = secagg.Aggregator(config, key, kind=kind)
    for update in updates:
        aggregator.add(update)
    return aggregator.finish()


def test_what_cannot_be_summed_has_no_sizes() -> None:
    he = {"lib": "flashe", "config": {"value_bits": 24}}
    config = secagg.Config.from_dict(
        {"he": he, "aggregation": {"max_abs": 1.0, "max_clients": 10}, "nonnegative": ["x"]}
    )
    with pytest.raises(ConfigError, match="nonnegative: pattern 'x' matches no tensor"):
        sizes_of(config, Layout.of(STATE), SITES)
