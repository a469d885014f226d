"""What it costs that every sum is verified, and that nonces do not rest on randomness alone: with them and without."""

from __future__ import annotations

import secrets
from dataclasses import replace

import numpy as np
import pytest

import secagg
from secagg.encryption import Encryption
from secagg.scheme.codec import codec_for
from secagg.trust.tags import Authenticator
from secagg.wire.header import NONCE_NBYTES, Contribution

SITES = 30
#: Before anything was tagged but integers, and no manifest was named: 16 bytes of tag.
EARLIER_TAG_NBYTES = 16
BACKENDS = ("tenseal", "seal-bgv-16", "flashe-16")


@pytest.fixture
def untagged(monkeypatch):
    """Runs something without tags: none are computed, none are checked."""

    def run(work):
        with monkeypatch.context() as patch:
            patch.setattr(Authenticator, "add_integers", lambda self, words, *, signed: None)
            patch.setattr(Authenticator, "add_ciphertext", lambda self, words: None)
            patch.setattr(Authenticator, "fits", lambda self, tail: True)
            patch.setattr(Encryption, "_verify", lambda self, aggregate, authenticator: None)
            return work()

    return run


@pytest.mark.parametrize("backend", BACKENDS)
def test_encrypt(backend, compare, report, benchmark, message, decrypted, configure, make_keys, model, untagged):
    site = secagg.Client(configure(backend), make_keys(backend).client, "site-1")
    work = lambda: site.encrypt(model).to_bytes()  # noqa: E731
    outcome = compare(work, lambda: untagged(work), rounds=5 if backend == "tenseal" else 30)
    update = secagg.Update.from_bytes(outcome.result)
    assert all(update.tail.tags[: 1 if backend == "flashe-16" else None])
    more = update.header.tail_nbytes - 128 - EARLIER_TAG_NBYTES + len(f',"manifest":"{bytes(32).hex()}"')
    benchmark.extra_info["more_nbytes"] = more
    message(update, decrypted(configure(backend), make_keys(backend), update, model), model)
    report.measure(f"tags-{backend}", outcome.ratio, f"{outcome.detail}; {more} bytes more")
    assert report.measure(f"tags-nbytes-{backend}", more).met


def test_nonce(compare, report, message, decrypted, configure, make_keys, model, monkeypatch):
    """Of flashe's encryption with nonces that depend on all values, against the same with random ones."""
    site = secagg.Client(configure("flashe-16"), make_keys("flashe-16").client, "site-1")

    def random_nonce(key, draft, content):
        return replace(draft, contributions=(Contribution(draft.site, secrets.token_bytes(NONCE_NBYTES)),))

    def without() -> bytes:
        with monkeypatch.context() as patch:
            patch.setattr("secagg.encryption.with_nonce", random_nonce)
            return site.encrypt(model).to_bytes()

    outcome = compare(lambda: site.encrypt(model).to_bytes(), without, rounds=30)
    assert len(outcome.result) == len(without())
    message(outcome.result, decrypted(configure("flashe-16"), make_keys("flashe-16"), outcome.result, model), model)
    report.measure("nonce-flashe", outcome.ratio - 1, outcome.detail)


@pytest.mark.parametrize("backend", BACKENDS)
def test_decrypt(backend, compare, report, message, configure, make_keys, model, flat, flatten_state, untagged):
    config, keys = configure(backend), make_keys(backend)
    sites = [secagg.Client(config, keys.client, f"site-{number}") for number in range(SITES)]
    aggregator = secagg.Aggregator(config, keys.server)
    for site in sites:
        aggregator.add(site.encrypt(model))
    aggregate = aggregator.finish().to_bytes()
    work = lambda: sites[0].decrypt(secagg.Update.from_bytes(aggregate), like=model)  # noqa: E731
    outcome = compare(work, lambda: untagged(work), rounds=9)
    bound = codec_for(config.params, config.aggregation).mean_error(SITES, float(SITES))
    assert np.abs(flatten_state(outcome.result) - flat).max() <= bound + 2.0**-24
    message(aggregate, outcome.result, model)
    report.measure(f"verify-{backend}", outcome.ratio, outcome.detail)
