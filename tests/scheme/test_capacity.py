"""Promise 2: a codec proves at construction that no sum can wrap and that noise leaves enough of it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from federation import CLARA, LARGE, TINY, VARIANTS, federate

from secagg import generate_keys
from secagg.errors import ConfigError
from secagg.scheme.aggregation import Aggregation
from secagg.scheme.clear_codec import FixedPointCodec
from secagg.scheme.params import CKKSParams, Params
from secagg.scheme.real_codec import RealCodec
from secagg.scheme.ring import Ring

ALL_NUMBERS = r"lower scale_bits, max_abs or max_clients, or use larger coeff_mod_bit_sizes"


def real(params, **aggregation):
    return RealCodec(Params.from_dict(params), Aggregation(**aggregation))


@pytest.mark.parametrize(
    ("params", "aggregation"),
    [
        (CLARA | {"scale_bits": 95}, {}),
        (CLARA, {"max_abs": 2.0**53}),
        (CLARA | {"scale_bits": 85}, {"max_clients": 10_000}),
        (CLARA | {"coeff_mod_bit_sizes": [44, 44]}, {}),
        (TINY, {"max_clients": 4, "max_abs": 8.0}),
        (CLARA, {"max_abs": 1e308}),
    ],
    ids=["scale", "max_abs", "max_clients", "primes", "tiny", "infinite"],
)
def test_a_sum_that_could_wrap(params, aggregation):
    with pytest.raises(ConfigError, match=ALL_NUMBERS):
        real(params, **aggregation)


def test_the_edge_of_wrapping():
    """max_clients * max_abs * 2**scale must stay below a quarter of the data primes."""
    real(CLARA | {"scale_bits": 88}, max_clients=31, max_abs=7.9)
    with pytest.raises(ConfigError, match="needs 97.0 bits, the data primes .* hold 97"):
        real(CLARA | {"scale_bits": 89}, max_clients=32, max_abs=8.0)


@pytest.mark.parametrize(
    ("params", "aggregation"),
    [
        (CLARA | {"scale_bits": 10}, {}),
        (TINY | {"scale_bits": 12}, {"max_clients": 4, "max_abs": 1.0}),
        (CLARA | {"scale_bits": 30}, {"max_abs": {"default": 8.0, "gate": 1e-6}}),
        (CLARA | {"scale_bits": 25}, {"max_abs": 1e-4}),
    ],
    ids=["scale", "tiny", "one small bound", "small values"],
)
def test_a_mean_that_would_drown_in_noise(params, aggregation):
    with pytest.raises(ConfigError, match=r"error of up to .*: raise scale_bits or max_abs"):
        real(params, **aggregation)


def test_errors_grow_with_sites_and_shrink_with_weight():
    codec = real(CLARA)
    assert codec.sum_error(1) < codec.sum_error(2) < codec.sum_error(30) < 30 * codec.sum_error(1)
    assert codec.mean_error(30, 30.0) < codec.mean_error(30, 15.0) < codec.mean_error(30, 0.03)
    assert codec.mean_error(2, codec.sum_error(2)) == float("inf")
    assert real(CLARA | {"scale_bits": 41}).sum_error(2) < codec.sum_error(2)


# Clear tensors: the unit is the bound of a weighted value.

MEASURED = {"precision": "auto"}


def in_words(aggregation, values, weight=1.0, bound=1.0, max_abs=math.inf):
    """Words of clear values under a bound of their weighted values."""
    encoder = FixedPointCodec(aggregation).encoder([values], [max_abs], [bound], weight)
    return encoder.encode(0, -(-values.size // 4096))[: values.size], encoder.clipped


@pytest.mark.parametrize(
    ("aggregation", "places"),
    [
        ({}, 57),
        ({"max_abs": 2.0**40}, 57),
        ({"max_clients": 2}, 61),
        (MEASURED, 41),
        (MEASURED | {"max_clients": 2}, 45),
    ],
    ids=str,
)
@pytest.mark.parametrize("bound", [1.0, 0.001, 2.0**44])
def test_fixed_point_words(aggregation, places, bound):
    """So many places whatever the bound is."""
    aggregation = Aggregation(**aggregation)
    parts = np.array([0.0, 2.0**-places, -(2.0**-places), 0.25, -0.25, 2.0 ** -(places + 1)])
    words, _ = in_words(aggregation, parts * bound, bound=bound)
    assert words.tolist() == [0, 1, 2**64 - 1, 2 ** (places - 2), 2**64 - 2 ** (places - 2), 0]  # ties to even
    found = np.empty(6)
    FixedPointCodec(aggregation).decoder([found]).decode(0, words, [bound], 1.0)
    np.testing.assert_array_equal(found[:5], parts[:5] * bound)


@pytest.mark.parametrize("clients", [2, 3, 30, 10_000])
@pytest.mark.parametrize("aggregation", [{}, MEASURED], ids=["fixed", "measured"])
def test_sums_of_clear_words_stay_below_half(aggregation, clients):
    """As many sites as are planned for, all at what is the most; beyond that, values are clipped to it."""
    aggregation = Aggregation(max_clients=clients, **aggregation)
    most = 2.0**16 if aggregation.calibrated else 1.0
    words, clipped = in_words(aggregation, np.array([most, -most, 1e300, -1e300]), bound=1.0)
    assert words.view(np.int64).tolist() == [words[0], -int(words[0])] * 2
    assert clients * int(words[0]) < 2**63 <= 4 * clients * int(words[0])
    assert not clipped


def test_a_clear_value_is_held_against_its_max_abs_and_its_word_against_the_bound():
    values = np.array([1.5, -1.5, 0.3])
    words, clipped = in_words(Aggregation(max_weight=8.0), values, weight=4.0, bound=12.0, max_abs=1.5)
    np.testing.assert_array_equal(words.view(np.int64) * 2.0**-57, np.rint(values * 4 / 12 * 2.0**57) * 2.0**-57)
    assert not clipped
    assert in_words(Aggregation(max_weight=8.0), values, weight=4.0, bound=12.0, max_abs=1.4)[1] == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_clear_value_that_is_none_is_counted(value):
    assert in_words(Aggregation(**MEASURED), np.array([0.5, value]))[1] == 1


def test_what_has_not_been_measured_is_sent_as_nothing():
    words, _ = in_words(Aggregation(precision="previous"), np.array([1.0, -3.0]), bound=0.0)
    assert not words.any()


def test_each_clear_tensor_has_a_bound_of_its_own():
    """Across blocks, with tensors of no value between them."""
    sizes, bounds = [5000, 0, 3, 4096], [2.0, 7.0, 1e-9, 1e9]
    rng = np.random.default_rng(0)
    vectors = [rng.uniform(-1, 1, size) * bound / 4 for size, bound in zip(sizes, bounds, strict=True)]
    codec, blocks = FixedPointCodec(Aggregation(**MEASURED)), -(-sum(sizes) // 4096)
    encoder = codec.encoder(vectors, [math.inf] * 4, bounds, 3.0)
    found = [np.empty(size) for size in sizes]
    decoder = codec.decoder(found)
    for block in range(blocks):
        decoder.decode(block, encoder.encode(block, 1), bounds, 3.0)
    for one, other, bound in zip(found, vectors, bounds, strict=True):
        assert np.abs(one - other).max(initial=0) <= bound / 3 * 2.0**-42 * (1 + 2.0**-8)


def use_everywhere(federation):
    """What sites, the server and whoever makes the keys do first; each of them must refuse what cannot work."""
    return federation.site, federation.aggregator, lambda: generate_keys(federation.config)


def test_a_sum_of_reals_that_could_wrap_is_refused_everywhere(ckks):
    for use in use_everywhere(federate(ckks, CLARA).but(max_abs=2.0**53)):
        with pytest.raises(ConfigError, match=ALL_NUMBERS):
            use()


@pytest.mark.parametrize("lib", [variant for variant in VARIANTS if VARIANTS[variant][1] == "BGV"])
def test_a_sum_of_integers_that_could_wrap_is_refused_everywhere(lib):
    federation = federate(lib, LARGE)
    for use in use_everywhere(federation.but(max_clients=10_000)):
        with pytest.raises(ConfigError, match="lower max_clients or plain_modulus_bits, use larger"):
            use()


@pytest.mark.parametrize("max_abs", [1e-200, 2.0**40, 1e200])
def test_any_bound_is_one_for_what_is_clear(max_abs):
    """Words are in units of it, so that none is too large or small to have a fraction."""
    federation = federate("flashe", LARGE, encrypt={"include": ["w"]}, max_abs=max_abs, max_weight=7)
    states = [{"w": np.ones(1) * max_abs, "c": np.array([1.0, -0.3, 1e-9]) * max_abs}] * 3
    federation.assert_mean(federation.site().decrypt(federation.sum(states, [7, 1, 2])), states, [7, 1, 2])


def test_a_block_that_fits_no_frame():
    """A ciphertext over 1 MiB is refused before any key is made or used."""
    params = CKKSParams(32768, (60, 60, 60, 60), 40)
    primes = tuple(2**59 + 2 * index + 1 for index in range(4))
    with pytest.raises(ConfigError, match="a block takes 1474560 bytes, a frame holds 1048576.*smaller"):
        Ring.of_update(params, primes)
    assert Ring.of_update(replace(params, seeded=True), primes).block_nbytes == 1474560 // 2


def test_no_keys_for_a_block_that_fits_no_frame(ckks):
    params = {"poly_modulus_degree": 32768, "coeff_mod_bit_sizes": [60] * 4, "scale_bits": 40, "seeded": False}
    with pytest.raises(ConfigError, match="a frame holds"):
        federate(ckks, params)
