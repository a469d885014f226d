"""The planner: what a config leaves out becomes as small as is provably safe, and what it says is held to the proof."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import pytest
import seal
from federation import read_config

from secagg import Config, generate_keys
from secagg.errors import ConfigError
from secagg.scheme.aggregation import Aggregation
from secagg.scheme.codec import codec_for
from secagg.scheme.params import BGVParams, CKKSParams, FLASHEParams, Params
from secagg.scheme.presets import PRESETS, plan_bgv, plan_params
from secagg.scheme.ring import Ring

VALUE_BITS = range(3, 25)
SITES = (2, 3, 9, 30, 100, 1000, 4681, 10_000)
#: ePrint 2024/463, table 5.2, once more.
CEILINGS = {1024: 26, 2048: 53, 4096: 106, 8192: 214, 16384: 430, 32768: 868}


def planned(value_bits, sites, seeded):
    lib = "seal" if seeded else "pyfhel"
    config = {"scheme": "BGV", "value_bits": value_bits}
    return plan_params(lib, config, Aggregation(max_clients=sites))


def moduli_of(params):
    """The primes and the plain modulus that SEAL chooses."""
    degree = params.poly_modulus_degree
    primes = seal.CoeffModulus.Create(degree, list(params.coeff_mod_bit_sizes))
    plain = seal.PlainModulus.Batching(degree, params.plain_modulus_bits)
    return tuple(int(prime.value()) for prime in primes), int(plain.value())


def largest_noise(degree, plain, special, seeded):
    """The largest coefficient of message and noise of one ciphertext: errors of 42 coin flips, ternary u and s."""
    coins, message = 21, plain // 2 + 1
    if seeded:
        return plain * coins + message
    # e·u + e0 + e1·s; divided by the special prime, two polynomials gain a multiple of t below t each, and a rest.
    errors = coins * degree + coins + coins * degree
    if special is None:
        return plain * errors + message
    return plain * -(-errors // special) + plain * (1 + degree) + message


def lanes_of(value_bits, sites, plain):
    """Lanes that hold the sums of so many sites in one number below `plain`: tried out, one after another."""
    largest = 2 * (2 ** (value_bits - 1) - 1) * sites
    bits, word, lanes = len(f"{largest:b}"), 0, 0
    while (word << bits) + largest < plain:
        word, lanes = (word << bits) + largest, lanes + 1
    return lanes


@pytest.mark.parametrize("seeded", [True, False], ids=["seeded", "public key"])
@pytest.mark.parametrize("sites", SITES)
def test_plans_hold(sites, seeded):
    """Of SEAL's own primes: below the ceiling, a lane at least, noise below q/2, and a block that fits a frame."""
    for value_bits in VALUE_BITS:
        params = planned(value_bits, sites, seeded)
        assert isinstance(params, BGVParams)
        assert params.seeded is seeded
        degree, sizes = params.poly_modulus_degree, params.coeff_mod_bit_sizes
        assert sum(sizes) <= CEILINGS[degree]
        primes, plain = moduli_of(params)
        data, special = (primes[:-1], primes[-1]) if len(primes) > 1 else (primes, None)
        assert seeded or special is not None
        assert 2 * sites * largest_noise(degree, plain, special, seeded) < math.prod(data)
        assert plain not in primes
        assert len(primes) == 1 or plain < math.prod(data)  # else SEAL sets no prime aside
        codec = codec_for(params, Aggregation(max_clients=sites))
        codec.check_moduli(primes, plain)
        assert codec.block_values == degree * lanes_of(value_bits, sites, plain) > 0
        Ring.of_update(params, primes)


def fewest_bits_a_value(value_bits, sites, seeded, margin):
    """The least quotient of data bits and lanes over all degrees and plain moduli, found by trying them."""
    best = math.inf
    for degree, ceiling in CEILINGS.items():
        smallest = degree.bit_length() + 11  # so that there are primes of so many bits
        for plain_bits in range(smallest, 61):
            plain = (1 << plain_bits) - (1 << (plain_bits - 10))
            lanes = lanes_of(value_bits, sites, plain)
            for bits in range(max(smallest, plain_bits + 2), ceiling + 1) if lanes else ():
                special = 0 if seeded and bits <= 60 else smallest if seeded else min(60, ceiling - bits)
                if bits + special > ceiling or 0 < special < smallest or bits / lanes >= best:
                    break
                if special == plain_bits:
                    special -= 1
                noise = largest_noise(degree, plain, 1 << special, seeded)
                sizes = {bits} if bits <= 60 else {bits // -(-bits // 60), -(-bits // -(-bits // 60))}
                if 2 * sites * noise * margin < 1 << bits and plain_bits not in sizes | {special}:
                    best = bits / lanes
                    break
    return best


@pytest.mark.parametrize("seeded", [True, False], ids=["seeded", "public key"])
@pytest.mark.parametrize("sites", [2, 30, 1000, 4681, 10_000])
def test_no_smaller_data_primes_would_do(sites, seeded):
    """Planned are the fewest bits a value, up to a percent, which the planner leaves for primes of unknown size."""
    for value_bits in VALUE_BITS:
        params = planned(value_bits, sites, seeded)
        lanes = lanes_of(value_bits, sites, moduli_of(params)[1])
        bits = sum(params.data_bit_sizes) / lanes
        assert fewest_bits_a_value(value_bits, sites, seeded, 1) <= bits
        assert bits <= fewest_bits_a_value(value_bits, sites, seeded, 1.01), (value_bits, params)


# What is given instead of planned.

GIVEN = {"poly_modulus_degree": 4096, "coeff_mod_bit_sizes": [53], "plain_modulus_bits": 32}


def config_of(he_config, lib="seal", **aggregation):
    """What is given means what it says where ``max_abs`` is given, too."""
    return Config.from_dict({"he": {"lib": lib, "config": he_config}, "aggregation": {"max_abs": 8.0} | aggregation})


def measured(lib, he_config, **aggregation):
    return Config.from_dict({"he": {"lib": lib, "config": he_config}, "aggregation": aggregation})


def bgv(**changes):
    return {"scheme": "BGV", "value_bits": 16, **GIVEN, **changes}


def test_given_moduli_are_kept():
    params = config_of(bgv()).params
    assert params == BGVParams(4096, (53,), plain_modulus_bits=32, value_bits=16, seeded=True)


FAILING = {
    "a sum wraps": (
        {"plain_modulus_bits": 20},
        {"max_clients": 30},
        "value_bits 16 from max_clients 30 need 21 bits, plain_modulus_bits is 20: lower value_bits or max_clients",
    ),
    "noise": (
        {"plain_modulus_bits": 48},
        {},
        r"noise of the sum of max_clients 30 .*half of the data primes \[53\] at plain_modulus_bits 48: lower",
    ),
    "noise of many": ({"plain_modulus_bits": 36}, {"max_clients": 10_000}, "noise of the sum of max_clients 10000"),
    "noise of public keys": (
        {"seeded": False, "plain_modulus_bits": 36},
        {},
        r"\(public-key ciphertexts, as the config is not seeded\): lower max_clients .* to have them planned",
    ),
    "noise beside a special prime": (
        {"seeded": False, "coeff_mod_bit_sizes": [53, 53], "plain_modulus_bits": 40},
        {"max_clients": 1000},
        "noise of the sum of max_clients 1000",
    ),
}


@pytest.mark.parametrize(("changes", "aggregation", "message"), FAILING.values(), ids=FAILING)
def test_given_moduli_that_cannot_work(changes, aggregation, message):
    config = config_of(bgv(**changes), **aggregation)
    for use in (lambda: codec_for(config.params, config.aggregation), lambda: generate_keys(config)):
        with pytest.raises(ConfigError, match=message):
            use()


def test_the_edge_of_noise():
    """30 sites, 42.1 bits of noise each: one bit of the plain modulus more is one too many."""
    for seeded, edge in ((True, 42), (False, 29)):
        noise = [largest_noise(4096, 1 << edge + more, None, seeded) for more in (0, 1)]
        assert 2 * 30 * noise[0] < (1 << 53) - (1 << 43) < 2 * 30 * noise[1]
        codec_for(config_of(bgv(plain_modulus_bits=edge, seeded=seeded)).params, Aggregation(max_clients=30))
        with pytest.raises(ConfigError, match="noise"):
            codec_for(config_of(bgv(plain_modulus_bits=edge + 1, seeded=seeded)).params, Aggregation(max_clients=30))


def test_moduli_of_a_key_are_held_against_the_plan():
    """A plan is made from bits; the primes of a key may be smaller than SEAL's."""
    codec = codec_for(config_of(bgv()).params, Aggregation(max_clients=30))
    codec.check_moduli(((1 << 53) - 111,), (1 << 32) - 5)
    with pytest.raises(ConfigError, match="plain modulus 1048573 is too small for 1 lanes of 21 bits"):
        codec.check_moduli(((1 << 53) - 111,), (1 << 20) - 3)
    with pytest.raises(ConfigError, match="noise of the sum of max_clients 30"):
        codec.check_moduli((1 << 40,), (1 << 32) - 5)


WRONG = {
    "degree alone": ({"poly_modulus_degree": 4096}, "needs 'coeff_mod_bit_sizes'"),
    "primes alone": ({"coeff_mod_bit_sizes": [53]}, "needs 'poly_modulus_degree'"),
    "plain modulus alone": ({"plain_modulus_bits": 32}, "needs 'poly_modulus_degree'"),
    "no plain modulus": ({"poly_modulus_degree": 4096, "coeff_mod_bit_sizes": [53]}, "needs 'plain_modulus_bits'"),
    "scale": ({"scale_bits": 40}, "unknown key 'scale_bits'; BGV knows scheme, "),
    "complex slots": ({"complex_slots": True}, "unknown key 'complex_slots'"),
    "a number for a key": ({7: 8}, "unknown key '7'"),
    "bits": ({"value_bits": 2}, "value_bits is 2; use a whole number from 3 to 24"),
    "more bits": ({"value_bits": 25}, "value_bits is 25"),
    "bits of a bool": ({"value_bits": True}, "value_bits is True"),
    "bits of a float": ({"value_bits": 16.0}, r"value_bits is 16\.0"),
    "rounding": ({"rounding": "up"}, "rounding is 'up'; use stochastic or nearest"),
    "rounding of a list": ({"rounding": []}, r"rounding is \[\]"),
    "overflow": ({"overflow": "wrap"}, "overflow is 'wrap'; use error or clip"),
    "feedback": ({"error_feedback": 1}, "error_feedback is 1; use true or false"),
    "seeded": ({"seeded": "yes"}, "seeded is 'yes'; use true or false"),
    "the same prime twice": (GIVEN | {"coeff_mod_bit_sizes": [32, 53]}, "SEAL would choose the same prime twice"),
    "a plain modulus without slots": (GIVEN | {"plain_modulus_bits": 13}, "plain_modulus_bits is 13; at degree 4096"),
    "a plain modulus too large": (GIVEN | {"plain_modulus_bits": 61}, "plain_modulus_bits is 61"),
    "insecure": (GIVEN | {"coeff_mod_bit_sizes": [53, 54]}, "allows 106"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_params_that_are_none(changes, message):
    with pytest.raises(ConfigError, match=message):
        config_of({"scheme": "BGV", "value_bits": 16, **changes})


@pytest.mark.parametrize("lib", ["seal", "flashe"])
def test_exact_schemes_need_bits(lib):
    scheme = {"seal": "BGV", "flashe": "FLASHE"}[lib]
    with pytest.raises(ConfigError, match="he.config needs 'value_bits' where aggregation.max_abs is given; leave out"):
        config_of({"scheme": scheme}, lib)


@pytest.mark.parametrize("scheme", ["BFV", "bgv", "", None, ["BGV"], {"BGV": 1}, 3], ids=repr)
def test_schemes_that_are_none(scheme):
    with pytest.raises(ConfigError, match=r"he.config.scheme is .*; this version knows CKKS, BGV, FLASHE"):
        config_of({"scheme": scheme, "value_bits": 8})


@pytest.mark.parametrize(("lib", "scheme"), [("flashe", "BGV"), ("flashe", "CKKS"), ("tenseal", "BGV")])
def test_schemes_that_a_library_does_not_know(lib, scheme):
    block = {"BGV": bgv(), "CKKS": {"poly_modulus_degree": 2048, "coeff_mod_bit_sizes": [53], "scale_bits": 30}}
    with pytest.raises(ConfigError, match=f"backend '{lib}' knows .*, not {scheme}"):
        generate_keys(config_of(block[scheme] | {"scheme": scheme}, lib, max_abs=1.0))


# Defaults.

CKKS = {"poly_modulus_degree": 8192, "coeff_mod_bit_sizes": [60, 40, 40], "scale_bits": 40}


@pytest.mark.parametrize(("lib", "seeded"), [("tenseal", True), ("seal", True), ("pyfhel", False)])
def test_seeded_is_the_default_of_libraries_that_encrypt_symmetrically(lib, seeded):
    assert config_of(CKKS, lib).params == CKKSParams(8192, (60, 40, 40), 40, seeded=seeded)
    assert config_of(CKKS | {"seeded": False}, lib).params.seeded is False
    if lib != "tenseal":
        assert config_of({"scheme": "BGV", "value_bits": 8}, lib).params.seeded is seeded


def test_the_scheme_of_a_library():
    assert config_of({"value_bits": 9}, "flashe").params == FLASHEParams(value_bits=9)
    assert {config_of(CKKS, lib).params.scheme for lib in ("tenseal", "pyfhel", "seal")} == {"CKKS"}


def test_quantisation_defaults():
    for params in (config_of({"value_bits": 9}, "flashe").params, config_of(bgv()).params):
        assert (params.rounding, params.overflow, params.error_feedback) == ("stochastic", "error", False)


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name):
    preset = Config.from_dict({"he": {"preset": name}})
    assert preset == Config.from_dict({"he": PRESETS[name]})
    assert preset == Config.from_dict({"he": {"preset": name}, "encrypt": "all", "aggregation": {}})
    assert preset.aggregation.precision == ("fixed" if name == "clara" else "auto")
    assert generate_keys(preset).server.params == preset.params


def test_what_the_presets_are():
    clara = CKKSParams(8192, (60, 40, 40), 40, seeded=True)
    params = {name: Config.from_dict({"he": {"preset": name}}).params for name in PRESETS}
    feedback = {"rounding": "nearest", "overflow": "clip", "error_feedback": True}
    assert params == {
        "clara": clara,
        "exact": replace(planned(6, 30, seeded=True), **feedback),
        "smallest": FLASHEParams(value_bits=7, **feedback),
    }
    given = {"aggregation": {"max_abs": 8.0}}
    params = {name: Config.from_dict({"he": {"preset": name}} | given).params for name in PRESETS}
    assert params == {
        "clara": clara,
        "exact": planned(16, 30, seeded=True),
        "smallest": FLASHEParams(value_bits=11, error_feedback=True),
    }


# Bits that are planned.

LIBS = [("flashe", {}), ("seal", {"scheme": "BGV"}), ("pyfhel", {"scheme": "BGV"}), ("seal", bgv())]


def words_a_value(params, sites):
    """Bits of ciphertext a value, of one polynomial."""
    if isinstance(params, FLASHEParams):
        return 64 / lanes_of(params.value_bits, sites, 1 << 64)
    return sum(params.data_bit_sizes) / lanes_of(params.value_bits, sites, moduli_of(params)[1])


@pytest.mark.parametrize("precision", ["auto", "previous"])
@pytest.mark.parametrize("sites", [2, 3, 30, 100, 1000])
@pytest.mark.parametrize(("lib", "block"), LIBS, ids=["flashe", "seal", "pyfhel", "given moduli"])
def test_the_most_bits_that_cost_no_more_than_6(lib, block, sites, precision):
    block = {key: value for key, value in block.items() if key != "value_bits"}
    numbers = {"max_clients": sites, "precision": precision}
    found = measured(lib, block, **numbers).params
    each = {bits: measured(lib, block | {"value_bits": bits}, **numbers).params for bits in range(6, 25)}
    costs = {bits: words_a_value(params, sites) for bits, params in each.items() if fits(params, sites)}
    assert found.value_bits == max(bits for bits, cost in costs.items() if cost == costs[6])
    assert found == each[found.value_bits]
    assert (found.rounding, found.overflow, found.error_feedback) == ("nearest", "clip", True)


def fits(params, sites):
    return isinstance(params, FLASHEParams) or bool(lanes_of(params.value_bits, sites, moduli_of(params)[1]))


@pytest.mark.parametrize(("sites", "bits"), [(3, 6), (10, 6), (30, 7), (100, 9)])
def test_bits_of_flashe(sites, bits):
    """Lanes of 64 bits: 8 of 8 bits for 3 sites, but 5 of 12 for 30, which 7 bits fill."""
    assert measured("flashe", {}, max_clients=sites).params.value_bits == bits


@pytest.mark.parametrize("bits", [3, 4, 24])
@pytest.mark.parametrize(("lib", "block"), LIBS[:3], ids=["flashe", "seal", "pyfhel"])
def test_bits_that_are_given_stay(lib, block, bits):
    given = {"value_bits": bits, "rounding": "stochastic", "error_feedback": False}
    params = measured(lib, block | given).params
    assert (params.value_bits, params.rounding, params.error_feedback) == (bits, "stochastic", False)
    assert codec_for(params, Aggregation(precision="auto")).lanes.limit == 2 ** (bits - 1) - 1


def test_given_moduli_without_room_for_6_bits_say_so():
    block = {key: value for key, value in bgv(plain_modulus_bits=14).items() if key != "value_bits"}
    config = measured("seal", block, max_clients=10_000)
    with pytest.raises(ConfigError, match="value_bits 6 from max_clients 10000 need 20 bits, plain_modulus_bits is 14"):
        generate_keys(config)


SCALARS = [None, True, "16", 16.0, ["16"], {"a": 16}, -1, 10**30, float("nan")]


@pytest.mark.parametrize("value", SCALARS, ids=repr)
@pytest.mark.parametrize("precision", ["fixed", "auto", "previous"])
@pytest.mark.parametrize(("lib", "block"), LIBS, ids=["flashe", "seal", "pyfhel", "given moduli"])
def test_values_that_are_none_of_an_exact_scheme(lib, block, precision, value):
    """Whatever a key is given in place of what it takes, it is named, also where bits are planned from it."""
    keys = ["value_bits", "rounding", "overflow", "error_feedback", "scheme"]
    if lib != "flashe":
        keys += ["seeded", "poly_modulus_degree", "coeff_mod_bit_sizes", "plain_modulus_bits"]
    for key in keys:
        if (key, value) in (("error_feedback", True), ("seeded", True)):
            continue
        with pytest.raises(ConfigError, match=f"{key} is |he.config needs '"):
            measured(
                lib, block | {key: value}, **({"max_abs": 8.0} if precision == "fixed" else {"precision": precision})
            )


@pytest.mark.parametrize("sizes", [["60", 40], [None], [[53]], [True, 53], ["53", "53"]], ids=repr)
def test_primes_that_are_none_where_bits_are_planned(sizes):
    block = {key: value for key, value in bgv(coeff_mod_bit_sizes=sizes).items() if key != "value_bits"}
    with pytest.raises(ConfigError, match="coeff_mod_bit_sizes is .*give the bits of each prime"):
        measured("seal", block)


@pytest.mark.parametrize(
    ("he", "message"),
    [
        ({"preset": "fast"}, "he.preset is 'fast'; use clara, exact, smallest, or lib and config"),
        ({"preset": None}, "he.preset is None"),
        ({"preset": ["clara"]}, r"he.preset is \['clara'\]"),
        ({"preset": "clara", "lib": "seal"}, "he.preset stands for lib and config"),
        ({"preset": "clara", "config": {}}, "he.preset stands for lib and config"),
        ({"config": {"value_bits": 8}}, "he needs 'lib', one of .*, or 'preset'"),
        ({"lib": "flashe"}, "he needs 'config'"),
        ({"lib": "seal", "config": [1]}, "config is .*must be a block"),
    ],
    ids=str,
)
def test_he_blocks_that_are_none(he, message):
    with pytest.raises(ConfigError, match=message):
        Config.from_dict({"he": he})


def test_plans_are_for_the_clients_of_the_config():
    few, many = (config_of({"scheme": "BGV", "value_bits": 16}, max_clients=sites).params for sites in (2, 1000))
    assert few != many
    assert few == planned(16, 2, seeded=True)
    assert many == planned(16, 1000, seeded=True)


CONFIGS = [
    {"he": {"lib": lib, "config": block | extra}, "aggregation": {"max_clients": sites}}
    for (lib, block), extra, sites in itertools.product(
        [("seal", {"scheme": "BGV"}), ("pyfhel", {"scheme": "BGV"}), ("flashe", {})],
        [{"value_bits": 4}, {"value_bits": 24, "rounding": "nearest", "overflow": "clip", "error_feedback": True}],
        [2, 1000],
    )
]


@pytest.mark.parametrize("data", CONFIGS, ids=json.dumps)
def test_round_trips(data):
    config = Config.from_dict(data)
    text = json.dumps(config.to_dict())
    assert read_config(text) == config
    assert json.loads(json.dumps(read_config(text).to_dict())) == json.loads(text)
    assert Params.from_dict(config.params.to_dict()) == config.params


def test_a_plan_stays_with_the_config():
    """Params that were written out are not planned again for another number of clients."""
    config = config_of({"scheme": "BGV", "value_bits": 16}, max_clients=1000).to_dict()
    config["aggregation"]["max_clients"] = 2
    assert Config.from_dict(config).params == planned(16, 1000, seeded=True)


def test_lanes_never_carry():
    """The sum of so many sites' largest values fits each lane, and all lanes the plain modulus."""
    for value_bits, sites in itertools.product(VALUE_BITS, SITES):
        params = planned(value_bits, sites, seeded=True)
        lanes = codec_for(params, Aggregation(max_clients=sites)).lanes
        largest = 2 * (2 ** (value_bits - 1) - 1) * sites
        assert largest < 1 << lanes.bits <= 2 * largest
        assert sum(largest << lane * lanes.bits for lane in range(lanes.per_word)) < moduli_of(params)[1]
        flashe = codec_for(FLASHEParams(value_bits=value_bits), Aggregation(max_clients=sites)).lanes
        assert flashe.bits == lanes.bits
        assert flashe.bits * flashe.per_word <= 64 < flashe.bits * (flashe.per_word + 1)


@pytest.mark.parametrize("seeded", [True, False])
def test_the_planner_takes_a_limit(seeded):
    """`plan_bgv` itself, for a limit that is none of `value_bits`."""
    block = plan_bgv(5000, 77, seeded)
    assert BGVParams(value_bits=13, seeded=seeded, **block).poly_modulus_degree == block["poly_modulus_degree"]
    assert block == plan_bgv(5000, 77, seeded)
