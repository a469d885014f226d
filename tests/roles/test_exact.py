"""Exact schemes add integers: what is decrypted is their sum, bit for bit, from two sites to a thousand."""

from __future__ import annotations

import itertools
import re
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from federation import federate
from quantised import (
    limit_of,
    mean_of,
    quantised,
    rebuilt,
    renamed,
    small_digits,
    small_ones,
    weight_digits,
    weight_of,
)

from secagg.errors import RangeError
from secagg.scheme import integer_codec
from secagg.scheme.aggregation import Aggregation
from secagg.scheme.codec import codec_for
from secagg.scheme.params import FLASHEParams
from secagg.scheme.presets import plan_params

VARIANTS = ["seal-BGV", "pyfhel-BGV", "flashe"]
variants = pytest.mark.parametrize("variant", VARIANTS)
#: Of what is coarse, or has a weight far below the largest, sums are exact too.
coarse = pytest.mark.filterwarnings("ignore:rounding loses:secagg.errors.PrecisionWarning")

#: Three tensors of unequal bounds, of which the bias is small; float64, so that a mean shows every bit of its sum.
MAX_ABS = {"default": 1.0, "*.bias": 0.01, "head.*": 50.0}
SHAPES = {"body.weight": (3, 41), "body.bias": (7,), "head.weight": (5, 2)}
BOUNDS = {"body.weight": 1.0, "body.bias": 0.01, "head.weight": 50.0}


@pytest.fixture
def seeds(monkeypatch):
    """The seeds of stochastic rounding, in the order in which they are drawn."""
    drawn = []

    def randbits(bits):
        assert bits == 64
        drawn.append((len(drawn) + 1) * 0xD1342543DE82EF95 % 2**64)
        return drawn[-1]

    monkeypatch.setattr(integer_codec, "secrets", SimpleNamespace(randbits=randbits))
    return drawn


def states_of(count, shapes=SHAPES, bounds=BOUNDS, seed=0):
    rng = np.random.default_rng(seed)
    return [{name: rng.uniform(-1, 1, shape) * bounds[name] for name, shape in shapes.items()} for _ in range(count)]


def assert_exact(mean, states, fractions, value_bits, seeds=None, bounds=BOUNDS, max_weight=1.0):
    """Hold a mean against the sum of the integers, computed one by one. Small tensors lie before the others."""
    small = dict(zip(states[0], small_ones([value.shape for value in states[0].values()]), strict=True))
    first = sum(states[0][name].size for name in states[0] if small[name]) * small_digits(value_bits)
    for name in states[0]:
        sums = sum(
            quantised(
                state[name], fraction, bounds[name], value_bits, seeds[site] if seeds else None, first, small[name]
            )
            for site, (state, fraction) in enumerate(zip(states, fractions, strict=True))
        )
        expected = mean_of(sums, fractions, bounds[name], value_bits, max_weight, small[name])
        expected = expected.reshape(states[0][name].shape).astype(states[0][name].dtype)
        # Of a small tensor, the sum is multiplied in another order: an error of three units of the last place.
        rtol = 3 * np.finfo(states[0][name].dtype).eps if small[name] else 0
        np.testing.assert_allclose(mean[name], expected, rtol=rtol, atol=0, err_msg=name)
        first += 0 if small[name] else sums.size


@coarse
@variants
@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
@pytest.mark.parametrize("value_bits", [4, 11, 24])
def test_a_sum_is_that_of_the_integers(variant, value_bits, rounding, seeds):
    params = {"value_bits": value_bits, "rounding": rounding}
    federation = federate(variant, params, max_clients=9, max_abs=MAX_ABS, max_weight=640)
    states, weights = states_of(5), [640, 128, 1, 333.3, 0.64]
    mean = federation.site().decrypt(federation.sum(states, weights), like=states[0])
    assert len(seeds) == (5 if rounding == "stochastic" else 0)
    assert_exact(mean, states, [weight / 640 for weight in weights], value_bits, seeds, max_weight=640)


@variants
@pytest.mark.usefixtures("kernels")
def test_several_blocks_and_dtypes(variant, seeds):
    """All lanes of two blocks and more, of float32 and float16 tensors."""
    federation = federate(variant, {"value_bits": 16}, max_clients=2, max_abs=1.0)
    size = 2 * federation.codec.block_values
    bounds = {"a": 1.0, "b": 1.0}
    states = states_of(2, {"a": (size - 5,), "b": (9,)}, bounds)
    states = [{"a": state["a"].astype(np.float32), "b": state["b"].astype(np.float16)} for state in states]
    aggregate = federation.sum(states)
    assert aggregate.header.blocks("encrypted") == 3
    assert_exact(federation.site().decrypt(aggregate), states, [1, 1], 16, seeds, bounds)


@variants
@pytest.mark.parametrize("value_bits", [4, 24])
@pytest.mark.parametrize("signs", ["most", "least", "mixed"])
def test_lanes_that_are_full(variant, value_bits, signs):
    """Every value of every site at its bound, as many sites as planned: no lane reaches its neighbour."""
    sites = {4: 9, 24: 4}[value_bits]  # 126 of 127, 67108856 of 67108863
    federation = federate(variant, {"value_bits": value_bits}, max_clients=sites, max_abs=0.3)
    lanes = federation.codec.lanes
    assert 2 * lanes.limit * sites > (1 - 2.0**-6) * ((1 << lanes.bits) - 1)
    assert lanes.per_word >= 2
    sign = {"most": np.ones, "least": lambda size: -np.ones(size)}.get(
        signs, lambda size: 1.0 - 2 * (np.arange(size) % 3 > 0)
    )
    values = 0.3 * sign(lanes.block_values)
    aggregate = federation.sum([{"w": values}] * sites)
    mean = federation.site().decrypt(aggregate)["w"]
    expected = mean_of(sites * limit_of(value_bits) * np.sign(values), [1] * sites, 0.3, value_bits)
    np.testing.assert_array_equal(mean, expected)
    np.testing.assert_allclose(mean, values, rtol=1e-15)


@coarse
@pytest.mark.parametrize(("variant", "value_bits"), [("seal-BGV", 8), ("flashe", 11)])
def test_a_thousand_sites(variant, value_bits, seeds):
    federation = federate(variant, {"value_bits": value_bits}, min_clients=1000, max_clients=1000, max_abs=2.0)
    shapes, bounds = {"w": (50,)}, {"w": 2.0}
    states, site = states_of(1000, shapes, bounds), federation.site()
    states[0]["w"][0] = states[1]["w"][0] = 2.0
    fractions = np.random.default_rng(1).uniform(0.001, 1, 1000).tolist()
    aggregator = federation.aggregator()
    for number, (state, fraction) in enumerate(zip(states, fractions, strict=True)):
        aggregator.add(renamed(site, f"site-{number}").encrypt(state, fraction))
    aggregate = aggregator.finish()
    assert len(aggregate.header.contributions) == 1000
    assert_exact(federation.site("late").decrypt(aggregate), states, fractions, value_bits, seeds, bounds)


def params_of(variant, value_bits, sites, **more):
    if variant == "flashe":
        return FLASHEParams(value_bits=value_bits, **more)
    config = {"scheme": "BGV", "value_bits": value_bits, **more}
    return plan_params(variant.removesuffix("-BGV"), config, Aggregation(max_clients=sites))


def begin(codec, values, bound=1.0, weight=1.0):
    """An update of one tensor, which is not small."""
    return codec.encoder([values], [values.shape], [bound], weight, seed=codec.draw())


def end(codec, found, sites, bound=1.0):
    """A mean of it."""
    return codec.decoder([found], [found.shape], [0], [bound], sites)


@variants
@pytest.mark.parametrize("value_bits", [4, 16, 24])
def test_words_of_up_to_a_thousand_sites(variant, value_bits, seeds):
    """The codec alone: words that are added like integers, never reaching their modulus."""
    params, bound, size = params_of(variant, value_bits, 1000), 0.7, 100
    aggregation = Aggregation(max_clients=1000, max_abs=bound)
    codec = codec_for(params, aggregation)
    modulus = 1 << getattr(params, "plain_modulus_bits", 64)
    values = np.random.default_rng(2).uniform(-bound, bound, (1000, size))
    values[:, :3] = bound, -bound, 0
    total = np.zeros(codec.lanes.words, dtype=object)
    sums, found = np.zeros(size, dtype=np.int64), np.empty(size)
    for sites, row in enumerate(values, start=1):
        words = begin(codec, row, bound).encode(0, 1)
        total += words.astype(object)
        sums += quantised(row, 1.0, bound, value_bits, seeds[-1])
        if sites in (1, 2, 3, 31, 999, 1000):
            assert total.max() < modulus - modulus // 1024
            decoder = end(codec, found, sites, bound)
            decoder.decode(0, total.astype(np.uint64))
            assert decoder.fault is None
            assert decoder.weight_sum == sites
            np.testing.assert_array_equal(found, mean_of(sums, [1] * sites, bound, value_bits))


@variants
def test_any_order_is_the_same_sum(variant):
    federation = federate(variant, {"value_bits": 16}, max_abs=1.0)
    states = states_of(3, {"w": (20,)}, {"w": 1.0})
    updates = [site.encrypt(state) for site, state in zip(federation.sites(3), states, strict=True)]
    means = [federation.site().decrypt(federation.add(order))["w"] for order in itertools.permutations(updates)]
    assert all((mean == means[0]).all() for mean in means)
    assert not np.array_equal(means[0], states[0]["w"])


def test_libraries_in_one_federation():
    """seal and Pyfhel encrypt for one sum, which both decrypt; seal's ciphertexts must be whole for that."""
    federation = federate("pyfhel-BGV", {"value_bits": 16, "rounding": "nearest"}, max_abs=MAX_ABS)
    states = states_of(2)
    sites = [federation.site("site-1"), federation.using("seal").site("site-2")]
    aggregate = federation.add(site.encrypt(state) for site, state in zip(sites, states, strict=True))
    for site in sites:
        assert_exact(site.decrypt(aggregate), states, [1, 1], 16)


@coarse
@variants
def test_exact_schemes_agree(variant):
    """Rounded to the nearest, the mean does not depend on the scheme."""
    states, weights = states_of(4), [1, 0.2, 0.001, 0.7]
    federation = federate(variant, {"value_bits": 13, "rounding": "nearest"}, max_clients=4, max_abs=MAX_ABS)
    assert_exact(federation.site().decrypt(federation.sum(states, weights)), states, weights, 13)


# Weights.


@pytest.mark.parametrize("value_bits", [4, 7, 16, 24])
@pytest.mark.parametrize("fraction", [1e-3, 0.01, 1 / 3, 0.5, 0.999999, 1.0, 2.0**-40])
def test_weights_survive_as_digits(value_bits, fraction):
    """A weight comes back with an error of at most 2**-41 of the largest one, whatever it is and whoever adds to it."""
    codec = codec_for(FLASHEParams(value_bits=value_bits), Aggregation(max_clients=1000, max_abs=1.0))
    assert codec.head_values(1) == weight_digits(value_bits) + 1
    words = begin(codec, np.zeros(3), weight=fraction).encode(0, 1)
    one = begin(codec, np.zeros(3)).encode(0, 1)
    decoder = end(codec, np.empty(3), 3)
    decoder.decode(0, words + one + one)
    assert decoder.weight_sum == float(2 + weight_of(fraction, value_bits))
    assert abs(Fraction(decoder.weight_sum) - 2 - Fraction(fraction)) <= Fraction(1, 2**41) + Fraction(1, 2**51)


@variants
def test_a_weight_that_rounds_to_nothing(variant):
    federation = federate(variant, {"value_bits": 16}, max_abs=1.0, max_weight=2.0**50)
    with pytest.raises(RangeError, match=r"a weight of 1 rounds to nothing beside .*max_weight 1.1259e\+15; lower"):
        federation.site().encrypt({"w": np.zeros(1)}, 1.0)
    federation.site().encrypt({"w": np.zeros(1)}, 2.0**10)


@pytest.mark.parametrize("weights", [(1e-3, 1e-3), (1e-3, 1), (0.37, 0.81), (1, 1)], ids=str)
@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
def test_the_error_of_a_mean(rounding, weights):
    """Within what `mean_error` promises, and it promises no more than a step a site of the weight's part."""
    federation = federate("flashe", {"value_bits": 16, "rounding": rounding}, max_abs=MAX_ABS)
    states, total = states_of(2), sum(weights)
    mean = federation.site().decrypt(federation.sum(states, weights))
    for name, bound in BOUNDS.items():
        exact = sum(weight * state[name] for weight, state in zip(weights, states, strict=True)) / total
        promised = federation.codec.mean_error(2, total, bound)
        most = 2 * bound / limit_of(16) / total * (1 if rounding == "stochastic" else 0.5)
        assert most < promised <= most * (1 + 1e-6)
        error = np.abs(mean[name] - exact).max()
        assert error <= promised
        assert (error > promised / 50) == (name != "body.bias")  # a bound that means something; small ones are finer


@pytest.mark.parametrize("value_bits", [6, 16, 24])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (2.0**-20, 3.0 * 2.0**-20), (2.0**36, 1.0), (17.0, 500.0)], ids=str)
def test_the_error_of_a_mean_under_measured_scales(value_bits, weights):
    """In units of weighted values: no more than a step a site, and what the rounding of the weights adds."""
    federation = federate("flashe/auto", {"value_bits": value_bits})
    states, total = states_of(2), sum(weights)
    mean = federation.site().decrypt(federation.sum(states, weights))
    federation.assert_mean(mean, states, weights)
    name = "body.weight"
    bound = federation.measured(max(w * np.abs(state[name]).max() for w, state in zip(weights, states, strict=True)))
    promised, most = federation.codec.mean_error(2, total, bound), 2 * bound / limit_of(value_bits) / total
    assert most * (1 - 1e-12) < promised <= most * (1 + 1e-6) + (2 * bound / total) * 2.0**-38 / total


# Rounding.


def encode(codec, values, bound=1.0, fraction=1.0):
    """The integers of values, read back from their words one update at a time."""
    encoder = begin(codec, values, bound, fraction)
    blocks = codec.blocks([values.shape], 1)
    words, found = encoder.encode(0, blocks), np.empty(values.size)
    decoder = end(codec, found, 1, bound)
    decoder.decode(0, words)
    assert decoder.fault is None
    return np.rint(found * decoder.weight_sum * codec.lanes.limit / bound).astype(np.int64)


def flashe(rounding, value_bits=8):
    return codec_for(FLASHEParams(value_bits=value_bits, rounding=rounding), Aggregation(max_abs=1.0))


@pytest.mark.parametrize("part", [0.0, 0.1, 0.3, 0.5, 0.77, -0.4])
def test_stochastic_rounding_is_unbiased(part):
    """Of 200,000 values, those that are rounded up are as many as the part above the integer; six deviations."""
    count = 200_000
    values = np.full(count, (5 + part) / 127)
    found = encode(flashe("stochastic"), values)
    low = 5 if part >= 0 else 4
    assert set(np.unique(found)) == ({5} if part == 0 else {low, low + 1})
    share, deviation = (found - low).mean(), np.sqrt(abs(part) * (1 - abs(part)) / count)
    assert abs(share - part % 1) <= 6 * deviation + 2.0**-24


def test_stochastic_rounding_is_unbiased_over_rounds():
    """Values that are encoded often: the noise of a position and that of its neighbours are independent."""
    codec = flashe("stochastic")
    found = np.array([encode(codec, np.array([5.25, -5.25, 5.25, 5.25]) / 127) for _ in range(4000)])
    np.testing.assert_allclose(found.mean(axis=0), [5.25, -5.25, 5.25, 5.25], atol=6 * np.sqrt(3 / 16 / 4000))
    correlations = np.corrcoef(found.T) - np.eye(4)
    assert np.abs(correlations).max() < 6 / np.sqrt(4000)


def test_a_seed_decides(monkeypatch):
    codec, values = flashe("stochastic"), np.random.default_rng(3).uniform(-1, 1, 5000)
    rounded = {}
    for seed in (0, 1, 2**64 - 1):
        monkeypatch.setattr(integer_codec, "secrets", SimpleNamespace(randbits=lambda bits, seed=seed: seed))
        rounded[seed] = encode(codec, values)
        np.testing.assert_array_equal(rounded[seed], encode(codec, values))
        np.testing.assert_array_equal(rounded[seed], quantised(values, 1.0, 1.0, 8, seed))
    assert not np.array_equal(rounded[0], rounded[1])
    assert not np.array_equal(rounded[0], rounded[2**64 - 1])


def test_every_update_has_a_seed_of_its_own():
    codec, values = flashe("stochastic"), np.full(1000, 5.5 / 127)
    assert len({encode(codec, values).tobytes() for _ in range(20)}) == 20


def test_nearest_is_to_even_and_draws_nothing(monkeypatch):
    monkeypatch.setattr(integer_codec, "secrets", None)
    codec = codec_for(FLASHEParams(value_bits=8, rounding="nearest"), Aggregation(max_abs=127.0))
    values = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.0, -127.0, 0.49, 3.51])
    assert encode(codec, values, 127.0).tolist() == [0, 2, 2, 0, -2, 126, 127, -127, 0, 4]


def test_a_mean_is_that_of_the_values_in_the_long_run():
    """Means of many sums, each rounded anew, close in on the true one; those of one rounding to the nearest do not."""
    values = np.array([0.0373, -0.41, 0.9999])
    for rounding, unbiased in (("stochastic", True), ("nearest", False)):
        federation = federate("flashe", {"value_bits": 4, "rounding": rounding}, max_clients=100, max_abs=1.0)
        site = federation.site()
        aggregator = federation.aggregator()
        for number in range(100):
            aggregator.add(renamed(site, f"site-{number}").encrypt({"w": np.tile(values, 200)}))
        mean = site.decrypt(aggregator.finish())["w"].reshape(200, 3).mean(axis=0)
        deviation = 1 / 7 / 2 / np.sqrt(20_000)
        assert (np.abs(mean - values).max() < 6 * deviation) == unbiased


def test_what_is_rebuilt_decrypts_as_before():
    """The helper that other tests tamper with changes nothing by itself."""
    federation = federate("flashe", {"value_bits": 16}, max_abs=1.0)
    aggregate = federation.sum(states_of(2, {"w": (20,)}, {"w": 1.0}))
    other = rebuilt(aggregate)
    assert [bytes(p) for _, p in other.frames()] == [bytes(p) for _, p in aggregate.frames()]
    assert (other.header, other.tail.tags) == (aggregate.header, aggregate.tail.tags)
    assert federation.site().decrypt(other)["w"].tolist() == federation.site().decrypt(aggregate)["w"].tolist()


# Sums that cannot be. What decodes them says why, and goes on to the end.


def fault_of(codec, words, sites=2, size=5):
    decoder = end(codec, np.empty(size), sites)
    decoder.decode(0, words)
    decoder.finish()
    return decoder.fault


def sum_of(codec, fractions):
    words = [begin(codec, np.zeros(5), weight=fraction).encode(0, 1) for fraction in fractions]
    return np.sum(words, axis=0, dtype=np.uint64)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("lane", [0, 1, 3])
@pytest.mark.parametrize("word", [8, 1000, 4095], ids=["value", "padding", "last"])
def test_a_lane_beyond_what_sites_can_give(lane, word):
    """2·L of each site is the most; what no tensor takes is L of each site, no more and no less."""
    codec = flashe("nearest")
    lanes = codec.lanes
    assert lanes.per_word == 4 > lane
    words = sum_of(codec, [1.0, 1.0])
    padding = lane > 0 or word >= 1000
    most = 2 * 127 if padding else 2 * 127 * 2
    others = int(words[word]) & ~(((1 << lanes.bits) - 1) << lane * lanes.bits)
    for value, fits in ((most, True), (most + 1, False), (2 * 127 - 1, not padding)):
        words[word] = others + (value << lane * lanes.bits)
        assert fault_of(codec, words) == (None if fits else "a value is none that so many sites can give together")


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("word", [0, 4095])
def test_bits_above_all_lanes(word):
    codec = flashe("nearest", 24)
    lanes = codec.lanes
    assert lanes.bits * lanes.per_word < 64
    for bit in (lanes.bits * lanes.per_word, 63):
        words = sum_of(codec, [1.0, 1.0])
        words[word] |= np.uint64(1 << bit)
        assert fault_of(codec, words) == "a value is none that so many sites can give together"


@pytest.mark.parametrize("sites", [1, 3, 4])
@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.01])
def test_another_number_of_sites_than_were_added(sites, fraction):
    """Lanes hold L more for each site: a wrong number would shift every value, and the ones that were added tell."""
    codec = flashe("nearest")
    words = sum_of(codec, [fraction, fraction])
    assert fault_of(codec, words, sites=2) is None
    assert re.fullmatch(f"it has the values of -?[0-9]+ sites, and lists {sites}", fault_of(codec, words, sites))


def test_weights_that_cannot_be():
    """None at all, less than nothing, or more than so many sites can have. Small ones can, whatever values become."""
    codec = flashe("nearest")
    digits, base = weight_digits(8), 2**7
    for fractions in ([1.0, 1.0], [1.0 / 127] * 2, [2.0**-40] * 2):
        assert fault_of(codec, sum_of(codec, fractions)) is None
    words = sum_of(codec, [1.0, 1.0])
    words[digits - 1] += np.uint64(1)
    assert fault_of(codec, words) == f"the sum of weights is {2 + 1 / base:g}"
    words = sum_of(codec, [1.0, 1.0])
    for digit in range(digits):
        words[digit] -= np.uint64(2 * 127)  # the digits of both become 0
    assert fault_of(codec, words) == "the sum of weights is 0"
    words[digits - 1] -= np.uint64(1)  # and less than nothing
    assert fault_of(codec, words) == f"the sum of weights is {-(base ** (digits - 1)) / (base**digits - 1):g}"


def test_of_several_faults_the_first_is_told_and_all_is_decoded():
    codec, found = flashe("nearest"), np.full(5, np.nan)
    words = sum_of(codec, [1.0, 1.0])
    words[weight_digits(8)] += np.uint64(1)  # the count of sites
    words[4095] += np.uint64(1)
    decoder = end(codec, found, 2)
    decoder.decode(0, words)
    assert decoder.fault == "it has the values of 3 sites, and lists 2"
    assert np.isfinite(found).all()
