"""Promise 2: a codec proves at construction that no sum can wrap and that noise leaves enough of it."""

from __future__ import annotations

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


@pytest.mark.parametrize(
    "aggregation", [{"max_abs": 2.0**34, "max_clients": 30}, {"max_abs": 2.0**26, "max_clients": 8192}]
)
def test_clear_tensors_without_room_for_a_fraction(aggregation):
    with pytest.raises(ConfigError, match="bits for the fraction.*: lower max_abs or max_clients"):
        FixedPointCodec(Aggregation(**aggregation))


def test_errors_grow_with_sites_and_shrink_with_weight():
    codec = real(CLARA)
    assert codec.sum_error(1) < codec.sum_error(2) < codec.sum_error(30) < 30 * codec.sum_error(1)
    assert codec.mean_error(30, 30.0) < codec.mean_error(30, 15.0) < codec.mean_error(30, 0.03)
    assert codec.mean_error(2, codec.sum_error(2)) == float("inf")
    assert real(CLARA | {"scale_bits": 41}).sum_error(2) < codec.sum_error(2)


@pytest.mark.parametrize(
    ("aggregation", "places"), [({}, 54), ({"max_abs": 0.001}, 57), ({"max_clients": 2, "max_abs": 1.0}, 61)]
)
def test_fixed_point_words(aggregation, places):
    codec = FixedPointCodec(Aggregation(**aggregation))
    values = np.array([0.0, 2.0**-places, -(2.0**-places), 0.25, -0.25, 2.0 ** -(places + 1)])
    words = codec.to_words(values)
    assert words.tolist() == [0, 1, 2**64 - 1, 2 ** (places - 2), 2**64 - 2 ** (places - 2), 0]  # ties to even
    np.testing.assert_array_equal(codec.to_values(words)[:5], values[:5])


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


def test_no_words_for_what_is_clear(lib):
    federation = federate(lib, LARGE).but(max_abs=2.0**40)
    with pytest.raises(ConfigError, match="bits for the fraction"):
        federation.but(encrypt="conv").site()
    with pytest.raises(ConfigError, match="bits for the fraction"):
        generate_keys(federation.but(encrypt="conv").config)
    federation.site()  # nothing is clear: no words for it are needed


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
