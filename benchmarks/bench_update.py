"""Encrypting, adding and decrypting a whole update, beside what TenSEAL itself takes for the same."""

from __future__ import annotations

import numpy as np
import pytest
import tenseal as ts

import secagg
from secagg.scheme.codec import codec_for

FLOAT32_ROUNDING = 2.0**-24  # of values up to 2


@pytest.mark.parametrize(("name", "backend"), [("encrypt", "tenseal"), ("encrypt-seal", "seal")])
def test_encrypt(name, backend, compare, report, benchmark, message, decrypted, configure, keys, model, flat, context):
    config = configure(backend)
    site = secagg.Client(config, keys.client, "site-1")
    outcome = compare(
        lambda: site.encrypt(model).to_bytes(), lambda: ts.ckks_vector(context, flat).serialize(), rounds=5
    )
    update = secagg.Update.from_bytes(outcome.result)
    aggregator = secagg.Aggregator(config, keys.server)
    aggregator.add(update)
    assert aggregator.sites == ("site-1",)
    own = len(ts.ckks_vector(context, flat).serialize())
    benchmark.extra_info["tenseal_nbytes"] = own
    message(update, decrypted(config, keys, update, model), model)
    report.measure(
        name, outcome.ratio, f"{outcome.detail}; {update.nbytes / 1e6:.1f} MB, TenSEAL's own {own / 1e6:.1f} MB"
    )


def test_add(compare, report, message, configure, keys, updates, model, flat, flatten_state, context):
    config = configure()
    first, second = updates

    def one_added() -> tuple[secagg.Aggregator]:
        aggregator = secagg.Aggregator(config, keys.server)
        aggregator.add(secagg.Update.from_bytes(first))
        return (aggregator,)

    def add(aggregator: secagg.Aggregator) -> secagg.Aggregator:
        aggregator.add(secagg.Update.from_bytes(second))
        return aggregator

    own = ts.ckks_vector(context, flat).serialize()
    own_sum = ts.ckks_vector_from(context, own)

    def bare() -> None:
        own_sum.add_(ts.ckks_vector_from(context, own))

    outcome = compare(add, bare, rounds=9, prepare=one_added)
    assert outcome.result.sites == ("site-1", "site-2")
    site = secagg.Client(config, keys.client, "site-1")
    mean = site.decrypt(outcome.result.finish())
    bound = codec_for(config.params, config.aggregation).mean_error(2, 2.0)
    assert np.abs(flatten_state(mean) - flat).max() <= bound + FLOAT32_ROUNDING
    message(second, mean, model)
    report.measure("add", outcome.ratio, outcome.detail)


def test_decrypt(compare, report, message, configure, keys, updates, model, flat, flatten_state, context):
    config = configure()
    aggregator = secagg.Aggregator(config, keys.server)
    for blob in updates:
        aggregator.add(secagg.Update.from_bytes(blob))
    aggregate = aggregator.finish().to_bytes()
    site = secagg.Client(config, keys.client, "site-1")

    vector = ts.ckks_vector(context, flat)
    own = vector.add_(vector.copy()).serialize()
    own_error = np.abs(np.array(ts.ckks_vector_from(context, own).decrypt()) / 2 - flat).max()

    outcome = compare(
        lambda: site.decrypt(secagg.Update.from_bytes(aggregate), like=model),
        lambda: ts.ckks_vector_from(context, own).decrypt(),
        rounds=5,
    )
    bound = codec_for(config.params, config.aggregation).mean_error(2, 2.0)
    assert own_error <= bound
    assert np.abs(flatten_state(outcome.result) - flat).max() <= bound + FLOAT32_ROUNDING
    assert all(type(outcome.result[name]) is type(tensor) for name, tensor in model.items())
    message(aggregate, outcome.result, model)
    report.measure("decrypt", outcome.ratio, outcome.detail)
