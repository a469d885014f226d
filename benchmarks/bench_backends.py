"""What an update costs under each backend and each choice of what is encrypted."""

from __future__ import annotations

import numpy as np
import pytest
from report import TARGETS, BackendRow

import secagg
from secagg.bench.settings import SETTINGS
from secagg.scheme.codec import codec_for

CASES = [(backend, "all") for backend, setting in SETTINGS.items() if setting.fixed] + [
    ("tenseal", "conv"),
    ("tenseal", "first-middle-last"),
]
ROUNDS = 3


@pytest.mark.parametrize(("backend", "encrypt"), CASES)
def test_update(backend, encrypt, benchmark, report, times, configure, make_keys, model, flat, flatten_state):
    config, keys = configure(backend, encrypt), make_keys(backend)
    first, second = (secagg.Client(config, keys.client, name) for name in ("site-1", "site-2"))
    doubled = {name: 2 * tensor for name, tensor in model.items()}
    encrypting, adding, decrypting = times(), times(), times()
    other = second.encrypt(doubled)
    rounds = 10 * ROUNDS if "flashe" in backend else ROUNDS
    benchmark.pedantic(lambda: encrypting.run(lambda: first.encrypt(model, round=1).to_bytes()), rounds=rounds)
    blob = first.encrypt(model).to_bytes()
    for _ in range(rounds):
        aggregator = secagg.Aggregator(config, keys.server)
        aggregator.add(other)
        adding.run(lambda: aggregator.add(secagg.Update.from_bytes(blob)))  # noqa: B023  # run at once
        aggregate = aggregator.finish().to_bytes()
        mean = decrypting.run(lambda: second.decrypt(secagg.Update.from_bytes(aggregate), like=model))  # noqa: B023
    error = float(np.abs(flatten_state(mean) - 1.5 * flat.astype(np.float64)).max())
    bound = codec_for(config.params, config.aggregation).mean_error(2, 2.0)
    if getattr(config.params, "error_feedback", False):
        bound *= 2  # the first site carries what its update of round 1 dropped, less than a step, into this one
    assert error <= bound + 2.0**-24  # rounding to float32
    ratio = max(len(blob), len(aggregate)) / flat.nbytes
    benchmark.extra_info.update(
        nbytes=len(blob),
        aggregate_nbytes=len(aggregate),
        add_seconds=adding.seconds,
        decrypt_seconds=decrypting.seconds,
        max_error=error,
    )
    report.backends.append(
        BackendRow(
            backend,
            encrypt,
            len(blob),
            len(aggregate),
            ratio,
            encrypting.seconds,
            adding.seconds,
            decrypting.seconds,
            error,
            bound,
        )
    )
    if encrypt == "all" and f"size-{backend}" in TARGETS:
        detail = f"{len(blob) / 1e6:.2f} MB up, {len(aggregate) / 1e6:.2f} MB down, raw {flat.nbytes / 1e6:.1f} MB"
        assert report.measure(f"size-{backend}", ratio, detail).met
