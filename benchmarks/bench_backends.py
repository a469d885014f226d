"""What an update costs under each backend and each choice of what is encrypted."""

from __future__ import annotations

import numpy as np
import pytest
from report import BackendRow

import secagg
from secagg.codec import RealCodec

ROUNDS = {"all": 3, "conv": 1, "first-middle-last": 5}


@pytest.mark.parametrize("encrypt", ROUNDS)
@pytest.mark.parametrize("lib", ["tenseal", "pyfhel"])
def test_update(lib, encrypt, benchmark, report, times, configure, keys, model, flat, flatten_state):
    config = configure(lib, encrypt)
    first, second = (secagg.Client(config, keys.client, name) for name in ("site-1", "site-2"))
    doubled = {name: 2 * tensor for name, tensor in model.items()}
    encrypting, adding, decrypting = times(), times(), times()
    other = second.encrypt(doubled)
    blob = benchmark.pedantic(lambda: encrypting.run(lambda: first.encrypt(model).to_bytes()), rounds=ROUNDS[encrypt])
    for _ in range(ROUNDS[encrypt]):
        aggregator = secagg.Aggregator(config, keys.server)
        aggregator.add(other)
        adding.run(lambda: aggregator.add(secagg.Update.from_bytes(blob)))  # noqa: B023  # run at once
        aggregate = aggregator.finish().to_bytes()
        mean = decrypting.run(lambda: second.decrypt(secagg.Update.from_bytes(aggregate), like=model))  # noqa: B023
    error = float(np.abs(flatten_state(mean) - 1.5 * flat.astype(np.float64)).max())
    assert error <= RealCodec(config.params, config.aggregation).mean_error(2, 2.0) + 2.0**-24  # rounding to float32
    ratio = len(blob) / flat.nbytes
    benchmark.extra_info.update(
        nbytes=len(blob), add_seconds=adding.seconds, decrypt_seconds=decrypting.seconds, max_error=error
    )
    report.backends.append(
        BackendRow(lib, encrypt, len(blob), ratio, encrypting.seconds, adding.seconds, decrypting.seconds, error)
    )
    if encrypt == "all":
        row = report.measure(f"size-{lib}", ratio, f"{len(blob) / 1e6:.1f} MB, raw {flat.nbytes / 1e6:.1f} MB")
        assert row.met
