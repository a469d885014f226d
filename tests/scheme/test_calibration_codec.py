"""The plaintext of a calibration: counts in lanes, their sums, and sums that nobody can have counted."""

from __future__ import annotations

import numpy as np
import pytest
from federation import federate

import secagg
from secagg.errors import ConfigError
from secagg.scheme.aggregation import MAX_CLIENTS, Aggregation
from secagg.scheme.calibration import CalibrationCodec
from secagg.scheme.params import FLASHE_BLOCK_WORDS, FLASHEParams
from secagg.scheme.scales import BINS, one_hot

VARIANTS = ["flashe", "seal-BGV", "pyfhel-BGV"]


def codec_of(variant="flashe", sites=4, tensors=3, bits=8):
    """A codec, and modulo what its words are added."""
    federation = federate(variant, {"value_bits": bits}, max_clients=sites)
    modulus = federation.keys.server.plain_modulus or 1 << 64
    return CalibrationCodec(federation.config.params, federation.config.aggregation, tensors), modulus


def words_of(codec, counts, step=None):
    """All words, so many blocks at a time."""
    encoder, step = codec.encoder(counts), step or codec.blocks
    parts = [encoder.encode(at, min(step, codec.blocks - at)) for at in range(0, codec.blocks, step)]
    assert encoder.clipped == 0
    return np.concatenate(parts)


def total(words, modulus):
    return (sum(part.astype(object) for part in words) % modulus).astype(np.uint64)


def counted(tensors, *places):
    """Ones in bins, given as (tensor, bin)."""
    counts = np.zeros((tensors, BINS))
    for tensor, place in places:
        counts[tensor, place] += 1
    return counts


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("variant", VARIANTS)
def test_counts_add_up(variant):
    codec, modulus = codec_of(variant)
    sites = [one_hot(largest) for largest in ([1.0, 0.0, 1e-300], [1.0, 0.0, 3.0], [0.7, 0.0, 1e300], [9.0, 0.0, 0.0])]
    for count in range(1, 5):
        words = total([words_of(codec, counts) for counts in sites[:count]], modulus)
        np.testing.assert_array_equal(codec.decode(words, count), sum(sites[:count]))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("tensors", [0, 1, 85, 700])
def test_any_number_of_tensors(tensors):
    """In one block or several, and block by block as well as all at once."""
    codec, modulus = codec_of(tensors=tensors, sites=1000)
    counts = one_hot(np.random.default_rng(0).uniform(0, 2, tensors).tolist())
    words = words_of(codec, counts)
    np.testing.assert_array_equal(words_of(codec, counts, 1), words)
    assert words.size == codec.blocks * FLASHE_BLOCK_WORDS
    np.testing.assert_array_equal(codec.decode(total([words] * 7, modulus), 7), 7 * counts)


@pytest.mark.parametrize("variant", ["flashe", "seal-BGV"])
def test_as_many_sites_as_can_be(variant):
    codec, modulus = codec_of(variant, MAX_CLIENTS, tensors=2, bits=3)
    words = words_of(codec, counted(2, (0, 0), (1, BINS - 1)))
    largest = total([words.astype(object) * MAX_CLIENTS], modulus)
    np.testing.assert_array_equal(codec.decode(largest, MAX_CLIENTS), MAX_CLIENTS * counted(2, (0, 0), (1, BINS - 1)))


@pytest.mark.parametrize("value_bits", [3, 8, 24])
def test_lanes_do_not_depend_on_value_bits(value_bits):
    """A count needs few bits, whatever values need: of FLASHE, 12 lanes a word for 15 sites."""
    codec, _ = codec_of(sites=15, bits=value_bits, tensors=300)
    assert codec.blocks == -(-(1 + 300 * BINS) // (12 * FLASHE_BLOCK_WORDS))


# What so many sites cannot have counted.


def sum_of(codec, modulus, *counts):
    return total([words_of(codec, each) for each in counts], modulus)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("sites", [1, 3, 4])
def test_another_number_of_sites(variant, sites):
    codec, modulus = codec_of(variant)
    words = sum_of(codec, modulus, counted(3, (0, 5)), counted(3, (0, 5)))
    assert codec.decode(words, sites) is None
    assert codec.decode(words, 2) is not None


def test_a_site_that_does_not_count_itself():
    """By another program: each word is what so many sites could send. To count twice, a lane has no room."""
    codec, modulus = codec_of()
    words = sum_of(codec, modulus, counted(3, (0, 5)), counted(3, (0, 5)))
    words[0] -= np.uint64(1)  # the first lane of the first word is the count of sites
    assert codec.decode(words, 2) is None


def test_more_counts_of_a_tensor_than_sites():
    codec, modulus = codec_of()
    twice = sum_of(codec, modulus, counted(3, (1, 5)), counted(3, (1, 6), (1, 7)))
    assert codec.decode(twice, 2) is None
    fewer = sum_of(codec, modulus, counted(3), counted(3, (1, 6), (1, 7)))
    np.testing.assert_array_equal(codec.decode(fewer, 2), counted(3, (1, 6), (1, 7)))  # it could be two sites'


def test_counts_below_zero():
    """Lanes hold q + 1: a site of another program could send −1."""
    codec, modulus = codec_of()
    negative = counted(3)
    negative[2, 9] = -1
    assert codec.decode(sum_of(codec, modulus, negative, counted(3)), 2) is None
    covered = counted(3, (2, 9))
    assert codec.decode(sum_of(codec, modulus, negative, covered), 2) is not None  # as if both had counted nothing


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("place", ["lane", "top", "padding"])
def test_a_lane_that_is_too_large(place):
    codec, modulus = codec_of()
    words = sum_of(codec, modulus, counted(3, (0, 1)), counted(3, (0, 1)))
    last = (codec._lanes.per_word - 1) * codec._lanes.bits
    word, more = {"lane": (5, 0b111), "top": (5, 1 << 63), "padding": (-1, 1 << last)}[place]
    words[word] |= np.uint64(more)
    assert codec.decode(words, 2) is None


def test_noise_is_none():
    """What decrypts to anything is read without an exception."""
    codec, _ = codec_of()
    words = np.random.default_rng(0).integers(0, 2**64, codec.blocks * FLASHE_BLOCK_WORDS, np.uint64)
    for sites in (1, 2, 4):
        assert codec.decode(words, sites) is None


# Schemes.


def test_ckks_has_nothing_to_calibrate():
    with pytest.raises(ConfigError, match="there is nothing to calibrate in CKKS: give max_abs"):
        CalibrationCodec(federate("tenseal").config.params, Aggregation(), 3)


def test_bgv_has_room_for_counts_where_it_has_for_values():
    config = secagg.Config.from_dict(
        {"he": {"preset": "exact"}, "aggregation": {"max_clients": MAX_CLIENTS, "min_clients": 3}}
    )
    codec = CalibrationCodec(config.params, config.aggregation, 100)
    assert 0 < codec.blocks <= -(-(1 + 100 * BINS) // config.params.slot_count)


def test_a_calibration_is_small():
    """Of a SegResNet, 85 tensors: below a hundredth of what an update has."""
    aggregation = Aggregation(precision="auto", max_clients=30)
    codec = CalibrationCodec(FLASHEParams(value_bits=7, overflow="clip"), aggregation, 85)
    assert codec.blocks * 8 * FLASHE_BLOCK_WORDS < 0.01 * 4_700_914 * 7 / 8
