"""Exact schemes beside TenSEAL's, and beside what they cannot do without: quantising, keystreams, tags, digests."""

from __future__ import annotations

import secrets
from statistics import mean, median

import numpy as np
import pytest
from blake3 import blake3

import secagg
import secagg_ext
from secagg.backends.registry import load_backend
from secagg.scheme.codec import codec_for
from secagg.scheme.keystream import PIECE_NBYTES, Keystream, Masks
from secagg.wire.container import MAX_FRAME_NBYTES

SITES = 30


@pytest.mark.parametrize(
    ("name", "backend", "repeats"), [("speed-bgv", "seal-bgv-16", 8), ("speed-flashe", "flashe-16", 100)]
)
def test_speed(name, backend, repeats, benchmark, message, decrypted, report, times, configure, make_keys, keys, model):
    """In a turn the faster side repeats for as long as the slower one takes; the turns' ratios have a median."""
    slow = secagg.Client(configure(), keys.client, "site-1")
    fast = secagg.Client(configure(backend), make_keys(backend).client, "site-1")
    fast.encrypt(model).to_bytes()
    mine, theirs, ratios = [], [], []

    def turns() -> bytes:
        for _ in range(5):
            one, other = times(), times()
            one.run(lambda: slow.encrypt(model).to_bytes())
            for _ in range(repeats):
                blob = other.run(lambda: fast.encrypt(model).to_bytes())
            theirs.append(one.wall[0])
            mine.append(mean(other.wall))
            ratios.append(theirs[-1] / mine[-1])
        return blob

    blob = benchmark.pedantic(turns)
    aggregator = secagg.Aggregator(configure(backend), make_keys(backend).server)
    aggregator.add(secagg.Update.from_bytes(blob))
    benchmark.extra_info.update(tenseal_seconds=median(theirs), ratio=median(ratios))
    message(blob, decrypted(configure(backend), make_keys(backend), blob, model), model)
    report.measure(name, median(ratios), f"{median(mine) * 1e3:.0f} ms, tenseal {median(theirs):.2f} s")


def test_overhead(compare, report, message, decrypted, configure, make_keys, model, flat):
    """Of flashe's encryption, against quantising, tag, keystream and digest alone, over buffers that are there."""
    config = configure("flashe-16")
    site = secagg.Client(config, make_keys("flashe-16").client, "site-1")
    lanes = codec_for(config.params, config.aggregation).lanes
    blocks = -(-flat.size // lanes.block_values)
    words = np.empty(blocks * lanes.words, np.uint64)
    pad, stream = np.empty(PIECE_NBYTES, np.uint8), Keystream(secrets.token_bytes(32))
    step, clipped = 8 / lanes.limit, np.zeros(1, np.int64)
    shape = (lanes.words, lanes.per_word, lanes.bits, lanes.limit)
    alpha, state = secrets.randbits(126), np.zeros(2, np.uint64)

    def parts() -> None:
        secagg_ext.quantise([flat], words, *shape, 0, [1.0], [step], [float(lanes.limit)], clipped, 1, None)
        secagg_ext.poly_mac(words, alpha, state)
        for start in range(0, words.nbytes, pad.size):
            stream.read(start, pad[: min(pad.size, words.nbytes - start)])
        blake3(words.view(np.uint8).data).digest()

    outcome = compare(lambda: site.encrypt(model).to_bytes(), parts, rounds=30)
    message(outcome.result, decrypted(config, make_keys("flashe-16"), outcome.result, model), model)
    report.measure("overhead-flashe", outcome.ratio, outcome.detail)


def test_add(benchmark, message, report, times, configure, make_keys, model):
    """Bytes of words a second that a server takes in: parsed, verified and added; and beside what none can do without.

    That is one digest and one addition of the same bytes, a frame at a time.
    """
    config, keys = configure("flashe-16"), make_keys("flashe-16")
    blobs = [secagg.Client(config, keys.client, f"site-{n}").encrypt(model).to_bytes() for n in range(SITES)]
    adding, needed = times(), times()
    total = np.zeros(len(blobs[0]) // 8, np.uint64)

    def digest_and_add(blob: bytes) -> None:
        piece = MAX_FRAME_NBYTES // 8
        for start in range(0, total.size, piece):
            words = np.frombuffer(blob, np.uint64, min(piece, total.size - start), 8 * start)
            blake3(words.view(np.uint8).data).digest()
            part = total[start : start + words.size]
            np.add(part, words, out=part)

    def add_all() -> secagg.Aggregator:
        aggregator = secagg.Aggregator(config, keys.server)
        aggregator.add(secagg.Update.from_bytes(blobs[0]))
        digest_and_add(blobs[0])
        for blob in blobs[1:]:
            adding.run(lambda: aggregator.add(secagg.Update.from_bytes(blob)))  # noqa: B023  # run at once
            needed.run(digest_and_add, blob)
        return aggregator

    aggregator = benchmark.pedantic(add_all)
    assert len(aggregator.sites) == SITES
    reader = secagg.Client(config, keys.client, "reader")
    message(blobs[0], reader.decrypt(aggregator.finish(), like=model), model)
    rate = len(blobs[0]) / adding.seconds / 1e9
    benchmark.extra_info["seconds"] = adding.seconds
    report.measure("add-flashe", rate, f"{len(blobs[0]) / 1e6:.2f} MB in {adding.seconds * 1e3:.1f} ms")
    ratio = adding.seconds / needed.seconds
    report.measure("add-flashe-needed", ratio, f"{adding.seconds * 1e3:.1f} of {needed.seconds * 1e3:.1f} ms")


@pytest.mark.parametrize(("name", "backend"), [("decrypt-flashe", "flashe-16"), ("decrypt-bgv", "seal-bgv-16")])
def test_decrypt(name, backend, compare, report, message, configure, make_keys, model, flat, flatten_state):
    """A sum of 30 sites, beside the generation of its 30 streams and the library's own decryption."""
    config, keys = configure(backend), make_keys(backend)
    sites = [secagg.Client(config, keys.client, f"site-{number}") for number in range(SITES)]
    aggregator = secagg.Aggregator(config, keys.server)
    for site in sites:
        aggregator.add(site.encrypt(model))
    aggregate = aggregator.finish().to_bytes()

    header = secagg.Update.from_bytes(aggregate).header
    blocks = header.blocks("encrypted")
    block_nbytes = config.params.block_nbytes
    library, cipher = None, None
    if backend != "flashe-16":
        library = load_backend(config.lib)(config.params, keys.client)
        block_nbytes = Masks(library.data_primes, library.degree).block_nbytes
        cipher = library.encrypt(np.zeros(library.plain_slots, np.uint64)).copy()
    streams = [Keystream(secrets.token_bytes(32)) for _ in range(SITES)]
    buffer = np.empty(PIECE_NBYTES, np.uint8)

    def bare() -> None:
        for stream in streams:
            for start in range(0, blocks * block_nbytes, buffer.size):
                stream.read(start, buffer[: min(buffer.size, blocks * block_nbytes - start)])
        for _ in range(blocks if library else 0):
            library.decrypt(cipher)

    outcome = compare(lambda: sites[0].decrypt(secagg.Update.from_bytes(aggregate), like=model), bare, rounds=9)
    bound = codec_for(config.params, config.aggregation).mean_error(SITES, float(SITES))
    assert np.abs(flatten_state(outcome.result) - flat).max() <= bound + 2.0**-24
    message(aggregate, outcome.result, model)
    report.measure(name, outcome.ratio, outcome.detail)
