"""What an update says of its own scales: read back for any number of sites, and refused where it cannot be."""

from __future__ import annotations

import numpy as np
import pytest
from federation import federate

from secagg.scheme.scales import BINS, UNKNOWN, Scales, one_hot

WEIGHTS = [1.0, 2.0**-20, 2.0**40, 3.7]


def codec_of(bits=8, sites=4, precision="previous"):
    return federate("flashe", {"value_bits": bits}, max_clients=sites, precision=precision).codec


def words_of(codec, vectors, scales, weight=1.0, counts=None, bounds=None):
    shapes = [vector.shape for vector in vectors]
    flat = [vector.reshape(-1) for vector in vectors]
    bounds = scales.bounds if bounds is None else bounds
    if codec.counts_bins and counts is None:
        counts = np.zeros((len(scales.bins), BINS))
    encoder = codec.encoder(flat, shapes, bounds[: len(flat)], weight, scales, counts)
    return encoder.encode(0, codec.blocks(shapes, len(scales.bins)))


def decoded(codec, words, shapes, tensors, sites, step=None):
    """A decoder of all words, so many blocks at a time, and its targets."""
    targets = [np.empty(int(np.prod(shape))) for shape in shapes]
    decoder = codec.decoder(targets, shapes, list(range(len(shapes))), [np.inf] * tensors, sites)
    size = codec.lanes.words * (step or codec.blocks(shapes, tensors))
    for start in range(0, words.size, size):
        decoder.decode(start // codec.lanes.words, words[start : start + size])
    decoder.finish()
    return decoder, targets


def vectors_of(count):
    rng = np.random.default_rng(0)
    return [rng.uniform(-1, 1, shape) for shape in [(40, 50), (3,), (), (7, 9)][:count]]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("bits", [3, 8, 24])
@pytest.mark.parametrize("precision", ["auto", "previous"])
@pytest.mark.parametrize("step", [None, 1])
def test_a_sum_says_its_scales(bits, precision, step):
    codec = codec_of(bits, precision=precision)
    scales = Scales((0, 103, BINS - 1, 104, 57, 105))  # of six that are sent, four are encrypted
    vectors = vectors_of(4)
    counts = [one_hot([weight * 2.0**n for n in range(6)]) if codec.counts_bins else None for weight in WEIGHTS]
    shapes = [vector.shape for vector in vectors]
    words = [words_of(codec, vectors, scales, weight, row) for weight, row in zip(WEIGHTS, counts, strict=True)]
    decoder, _ = decoded(codec, sum(words), shapes, 6, 4, step)
    assert decoder.fault is None
    assert decoder.scales == scales
    assert decoder.bounds == scales.bounds
    assert decoder.weight_sum == pytest.approx(sum(WEIGHTS), rel=1e-15)
    if codec.counts_bins:
        np.testing.assert_array_equal(decoder.counts, sum(counts))
    else:
        assert decoder.counts is None


@pytest.mark.parametrize("step", [None, 1, 2])
def test_a_head_of_several_blocks(step):
    """Bins of 20,000 tensors, of 24 bits, fill two blocks and a half; values and counts begin within the third."""
    codec = codec_of(24, precision="auto")
    bins = np.random.default_rng(1).integers(0, BINS, 20_000)
    bins[:4] = 103
    scales, vectors = Scales(tuple(map(int, bins))), vectors_of(4)
    shapes = [vector.shape for vector in vectors]
    assert codec.head_values(20_000) > 2 * codec.block_values
    words = words_of(codec, vectors, scales)
    decoder, found = decoded(codec, words + words, shapes, 20_000, 2, step)
    assert decoder.fault is None
    assert decoder.scales == scales
    for value, vector in zip(found, vectors, strict=True):
        np.testing.assert_allclose(value, vector.reshape(-1), atol=2.0**-23)


def test_a_round_that_only_measures():
    codec, vectors = codec_of(), vectors_of(2)
    shapes = [vector.shape for vector in vectors]
    words = words_of(codec, vectors, Scales.unknown(3), 5.0, one_hot([1.0, 2.0, 0.0]))
    decoder, found = decoded(codec, words + words, shapes, 3, 2)
    assert decoder.fault is None
    assert decoder.scales == Scales((UNKNOWN,) * 3)
    assert decoder.bounds == [0.0] * 3
    assert decoder.weight_sum == 10
    assert not any(value.any() for value in found)
    assert decoder.counts.sum(axis=1).tolist() == [2, 2, 0]


# What no sites that agree can have sent.


def fault_of(codec, words, sites=2, tensors=2):
    """What a decoder finds, and that it finds it in silence: every word is decoded."""
    shapes = [vector.shape for vector in vectors_of(2)]
    decoder, found = decoded(codec, words, shapes, tensors, sites)
    assert all(np.isfinite(value).all() for value in found)
    return decoder.fault


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((5, 5), (5, 6)),
        ((5, 5), (6, 4)),
        ((5, 6), (5, 8)),  # the sum is one of two that agree, on a bin between them
        ((UNKNOWN, UNKNOWN), (5, 5)),
        ((5, UNKNOWN), (5, UNKNOWN)),
        ((5, 255), (5, 255)),
        ((BINS + 1, 5), (BINS + 1, 5)),
    ],
    ids=str,
)
def test_scales_that_no_sites_share(one, other):
    codec, vectors = codec_of(precision="auto"), vectors_of(2)
    words = [words_of(codec, vectors, Scales(bins), bounds=[1.0, 1.0]) for bins in (one, other)]
    fault = fault_of(codec, sum(words))
    if (one, other) == ((5, 6), (5, 8)):
        assert fault is None  # nothing tells: sites that are wrong are not found in every case
    else:
        assert fault == "its sites have used different scales"


def test_another_number_of_sites():
    codec, vectors = codec_of(precision="auto"), vectors_of(2)
    words = words_of(codec, vectors, Scales((103, 103)))
    for summed, sites in ((words * 2, 3), (words * 3, 2), (words, 2)):
        assert fault_of(codec, summed, sites) is not None
    assert fault_of(codec, words * 2) is None


def test_weights_that_are_nothing():
    codec, vectors = codec_of(precision="auto"), vectors_of(2)
    words = words_of(codec, vectors, Scales((103, 103)), weight=1e-20)
    assert fault_of(codec, words * 2) == "the sum of weights is 0"


def test_counts_that_so_many_sites_cannot_have():
    codec, vectors = codec_of(), vectors_of(2)
    right, wrong = one_hot([1.0, 2.0]), one_hot([1.0, 2.0])
    wrong[1, :2] = 1
    words = [words_of(codec, vectors, Scales((103, 103)), counts=counts) for counts in (right, wrong)]
    assert fault_of(codec, sum(words)) == "what it counts in bins is none that so many sites can count together"
    wrong = -wrong
    words = [words_of(codec, vectors, Scales((103, 103)), counts=counts) for counts in (right, wrong)]
    assert fault_of(codec, sum(words)) == "what it counts in bins is none that so many sites can count together"


@pytest.mark.parametrize("precision", ["auto", "previous"])
def test_noise_is_read_in_silence(precision):
    """As the pads of another key leave it, before tags refuse it: no exception tells where a fault is."""
    codec, shapes = codec_of(precision=precision), [vector.shape for vector in vectors_of(2)]
    rng = np.random.default_rng(2)
    for _ in range(20):
        words = rng.integers(0, 2**64, codec.blocks(shapes, 2) * codec.lanes.words, np.uint64)
        decoder, _ = decoded(codec, words, shapes, 2, 3)
        assert decoder.fault is not None
