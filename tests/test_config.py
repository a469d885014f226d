"""The configuration: Clara's block works unchanged, and every mistake is named with its remedy."""

from __future__ import annotations

import copy
import json
import os
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from federation import CLARA

from secagg import Config
from secagg.errors import ConfigError
from secagg.scheme.aggregation import Aggregation
from secagg.scheme.params import MAX_COEFF_MOD_BITS, CKKSParams

FULL = {
    "he": {"lib": "tenseal", "config": {**CLARA, "complex_slots": False, "seeded": True}},
    "encrypt": {"include": ["*.weight"], "exclude": ["head.*"]},
    "stay": [],
    "nonnegative": [],
    "aggregation": {
        "min_clients": 3,
        "max_clients": 12,
        "precision": "fixed",
        "max_abs": {"default": 0.5, "*.running_var": 10.0},
        "max_weight": 1000.0,
    },
}


def changed(path, value):
    """`FULL` with one value set, or with a key taken away."""
    data = copy.deepcopy(FULL)
    block = data
    for key in path[:-1]:
        block = block[key]
    if value is None:
        del block[path[-1]]
    else:
        block[path[-1]] = value
    return data


def test_round_trip():
    config = Config.from_dict(FULL)
    assert config.to_dict() == FULL
    assert Config.from_dict(config.to_dict()) == config


def test_defaults():
    data = {"he": {"lib": "pyfhel", "config": CLARA}}
    config = Config.from_dict(data)
    assert config == Config.from_dict(data | {"aggregation": {"precision": "fixed"}})
    assert config.to_dict() == {
        "he": {"lib": "pyfhel", "config": {**CLARA, "complex_slots": False, "seeded": False}},
        "encrypt": "all",
        "stay": [],
        "nonnegative": [],
        "aggregation": {
            "min_clients": 2,
            "max_clients": 30,
            "precision": "fixed",
            "max_abs": 8.0,
            "max_weight": 1.0,
        },
    }


EXACT = [
    {"preset": "exact"},
    {"preset": "smallest"},
    {"lib": "flashe", "config": {}},
    {"lib": "flashe", "config": {"value_bits": 11}},
    {"lib": "seal", "config": {"scheme": "BGV"}},
    {"lib": "pyfhel", "config": {"scheme": "BGV", "value_bits": 16}},
]


@pytest.mark.parametrize("he", EXACT, ids=str)
def test_exact_schemes_measure_where_no_number_is_given(he):
    for aggregation in ({}, {"max_weight": 40}, {"max_abs": None, "precision": None}, {"precision": "auto"}):
        config = Config.from_dict({"he": he, "aggregation": aggregation})
        assert config.aggregation.precision == "auto"
        assert config.aggregation.max_abs is None
        assert config.aggregation.max_weight == aggregation.get("max_weight")
        assert Config.from_dict(config.to_dict()) == config
    assert Config.from_dict({"he": he}) == Config.from_dict({"he": he, "aggregation": {}})
    previous = Config.from_dict({"he": he, "aggregation": {"precision": "previous"}})
    assert (previous.aggregation.precision, previous.aggregation.max_abs) == ("previous", None)
    assert Config.from_dict(previous.to_dict()) == previous
    assert previous.params == Config.from_dict({"he": he}).params


@pytest.mark.parametrize("he", EXACT, ids=str)
@pytest.mark.parametrize("max_abs", [0.5, {"default": 0.5, "*.bias": 2.0}], ids=str)
def test_what_is_given_is_fixed(he, max_abs):
    if "value_bits" not in he.get("config", {"value_bits": 0}):
        he = {**he, "config": he["config"] | {"value_bits": 8}}
    config = Config.from_dict({"he": he, "aggregation": {"max_abs": max_abs}})
    assert config.aggregation.to_dict() == {
        "min_clients": 2,
        "max_clients": 30,
        "precision": "fixed",
        "max_abs": max_abs,
        "max_weight": 1.0,
    }
    assert Config.from_dict(config.to_dict()) == config
    stated = Config.from_dict({"he": he, "aggregation": {"precision": "fixed", "max_abs": max_abs}})
    assert stated == config
    with pytest.raises(ConfigError, match=r"precision is 'fixed': give aggregation\.max_abs, or leave precision out"):
        Config.from_dict({"he": he, "aggregation": {"precision": "fixed"}})  # 8.0 would be a guess


@pytest.mark.parametrize("precision", ["auto", "previous"])
@pytest.mark.parametrize(
    ("he", "numbers", "message"),
    [
        (
            {"preset": "exact"},
            {"max_abs": 0.5},
            "max_abs is 0.5, and precision '{}' measures what it would say: leave one",
        ),
        ({"preset": "clara"}, {"max_abs": {"default": 1}}, "max_abs is {{'default': 1}}, and precision '{}' measures"),
        (
            {"preset": "clara"},
            {},
            "precision is '{}': CKKS has no steps to be measured; leave it out, or use an exact scheme",
        ),
        ({"lib": "tenseal", "config": CLARA}, {"max_weight": 3}, "precision is '{}': CKKS has no steps"),
        (
            {"lib": "flashe", "config": {"overflow": "error"}},
            {},
            "overflow is 'error', and with precision '{}' what is beyond .*'clip', leave it out of he.config, or give "
            "aggregation.max_abs",
        ),
    ],
    ids=str,
)
def test_precision_that_cannot_work(he, numbers, message, precision):
    aggregation = {"precision": precision} | numbers
    with pytest.raises(ConfigError, match=re.escape(message.format(precision)).replace(r"\.\*", ".*")):
        Config.from_dict({"he": he, "aggregation": aggregation})


def test_a_config_made_by_hand_is_held_to_the_same():
    exact = Config.from_dict({"he": {"preset": "smallest"}, "aggregation": {"max_abs": 1.0}})
    with pytest.raises(ConfigError, match="overflow is 'error', and with precision 'auto'"):
        replace(exact, aggregation=Aggregation(precision="auto"))
    with pytest.raises(ConfigError, match="precision is 'previous': CKKS has no steps"):
        replace(Config.from_dict({"he": {"preset": "clara"}}), aggregation=Aggregation(precision="previous"))


def test_files(tmp_path):
    yaml, js = tmp_path / "federation.yaml", tmp_path / "federation.json"
    yaml.write_text(
        "he:\n  lib: tenseal\n  config: {poly_modulus_degree: 8192, coeff_mod_bit_sizes: [60, 40, 40], "
        "scale_bits: 40, scheme: CKKS}\n"
        "encrypt: {include: ['*.weight'], exclude: ['head.*']}\n"
        "aggregation: {min_clients: 3, max_clients: 12, max_weight: 1000, max_abs: {default: 0.5, '*.running_var': 10}}"
    )
    js.write_text(json.dumps(FULL))
    assert Config.load(yaml) == Config.load(str(js)) == Config.from_dict(FULL)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read"),
        (b"he: [", "is not YAML"),
        (b"\xff\xfe\x00", "is not YAML"),
        (b"", "holds no configuration"),
        (b"- he", "holds no configuration"),
        (b"he: 2024-13-01", "is not YAML"),
        (b"encrypt: conv\nencrypt: all\n", "the key 'encrypt' twice"),
        (b"he: {lib: tenseal, config: {scale_bits: 40, scale_bits: 4}}", "the key 'scale_bits' twice"),
        (b"encrypt: {include: [{a: 1, a: 2}]}", "the key 'a' twice"),
        (b"!!python/object/apply:os.getcwd []", "is not YAML"),
    ],
    ids=str,
)
def test_a_file_that_is_no_config(tmp_path, text, message):
    path = tmp_path / "federation.yaml"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(ConfigError, match=message):
        Config.load(path)


@pytest.mark.parametrize(
    "path",
    [
        ("agregation",),
        ("he", "library"),
        ("he", "config", "poly_modulus_degre"),
        ("encrypt", "includes"),
        ("aggregation", "max_client"),
    ],
    ids=".".join,
)
def test_a_misspelt_key_at_every_level(path):
    with pytest.raises(ConfigError, match=f"unknown key '{path[-1]}'; (it|CKKS) knows "):
        Config.from_dict(changed(path, 5))


@pytest.mark.parametrize(
    "path",
    [
        ("he",),
        ("he", "lib"),
        ("he", "config"),
        ("he", "config", "poly_modulus_degree"),
        ("he", "config", "coeff_mod_bit_sizes"),
        ("he", "config", "scale_bits"),
    ],
    ids=".".join,
)
def test_a_missing_key(path):
    with pytest.raises(ConfigError, match=f"needs '{path[-1]}'"):
        Config.from_dict(changed(path, None))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("he",), "tenseal", "he is 'tenseal'"),
        (("he", "lib"), "tensael", "he.lib is 'tensael'; the registered backends are flashe, pyfhel, seal.*, tenseal"),
        (("he", "lib"), 7, "he.lib is '7'"),
        (("he", "config"), [8192], "config is"),
        (("he", "config", "scheme"), "BFV", "scheme is 'BFV'"),
        (("he", "config", "scheme"), "ckks", "scheme is 'ckks'"),
        (("he", "config", "poly_modulus_degree"), 8000, "poly_modulus_degree is 8000; use one of 1024, 2048"),
        (("he", "config", "poly_modulus_degree"), 65536, "poly_modulus_degree is 65536"),
        (("he", "config", "poly_modulus_degree"), "8192", "poly_modulus_degree is '8192'"),
        (("he", "config", "poly_modulus_degree"), True, "poly_modulus_degree is True"),
        (("he", "config", "poly_modulus_degree"), 8192.0, "poly_modulus_degree is 8192.0"),
        (("he", "config", "coeff_mod_bit_sizes"), [], "coeff_mod_bit_sizes is"),
        (("he", "config", "coeff_mod_bit_sizes"), 60, "coeff_mod_bit_sizes is 60"),
        (("he", "config", "coeff_mod_bit_sizes"), "60,40", "coeff_mod_bit_sizes is '60,40'"),
        (("he", "config", "coeff_mod_bit_sizes"), [60, "40"], "coeff_mod_bit_sizes is"),
        (("he", "config", "coeff_mod_bit_sizes"), [61, 40], "each prime has 15 to 60 bits"),
        (("he", "config", "coeff_mod_bit_sizes"), [60, 14], "each prime has 15 to 60 bits"),
        (("he", "config", "scale_bits"), 0, "scale_bits is 0"),
        (("he", "config", "scale_bits"), 40.0, "scale_bits is 40.0"),
        (("he", "config", "scale_bits"), -40, "scale_bits is -40"),
        (("encrypt",), "some", "encrypt is 'some'; use all, conv, first-middle-last or"),
        (("encrypt",), ["*.weight"], "encrypt is"),
        (("encrypt",), {}, "encrypt needs patterns"),
        (("encrypt", "include"), "*.weight", "give a list of patterns"),
        (("encrypt", "include"), [3], "3 is not a pattern"),
        (("encrypt", "exclude"), [""], "'' is not a pattern"),
        (("aggregation",), "mean", "aggregation is 'mean'"),
        (("aggregation", "min_clients"), 1, "min_clients is 1; use a whole number from 2"),
        (("aggregation", "min_clients"), 13, "min_clients 13 is above aggregation.max_clients 12"),
        (("aggregation", "max_clients"), 10_001, "max_clients is 10001"),
        (("aggregation", "max_clients"), 4.0, "max_clients is 4.0"),
        (("aggregation", "max_clients"), True, "max_clients is True"),
        (("aggregation", "precision"), "best", "precision is 'best'; use fixed, auto, previous"),
        (("aggregation", "precision"), True, "precision is True; use"),
        (("aggregation", "precision"), ["auto"], r"precision is \['auto'\]; use"),
        (("aggregation", "precision"), {}, r"precision is \{\}; use"),
        (("aggregation", "precision"), 8, "precision is 8; use"),
        (("aggregation", "max_abs"), "8", "max_abs is '8'; use a number above 0"),
        (("aggregation", "max_abs"), [8.0], r"max_abs is \[8.0\]; use a number above 0"),
        (("aggregation", "max_weight"), [1], r"max_weight is \[1\]; use a number above 0"),
        (("aggregation", "max_weight"), {}, r"max_weight is \{\}; use a number above 0"),
        (("aggregation", "max_weight"), 0, "max_weight is 0; use a number above 0"),
        (("aggregation", "max_weight"), "1e3", "max_weight is '1e3'"),
        (("aggregation", "max_weight"), float("inf"), "max_weight is inf"),
        (("aggregation", "max_weight"), float("nan"), "max_weight is nan"),
        (("aggregation", "max_weight"), 10**400, "max_weight is"),
        (("aggregation", "max_abs"), -1.0, "max_abs is -1.0; use a number above 0"),
        (("aggregation", "max_abs"), True, "max_abs is True"),
        (("aggregation", "max_abs"), 10**400, "max_abs is"),
        (("aggregation", "max_abs"), {}, "max_abs is empty"),
        (("aggregation", "max_abs"), {"default": 0}, r"max_abs\['default'\] is 0"),
        (("aggregation", "max_abs"), {3: 1.0}, "3 is not a pattern"),
    ],
    ids=lambda value: None if isinstance(value, str) else repr(value)[:40],
)
def test_a_value_that_cannot_work(path, value, message):
    with pytest.raises(ConfigError, match=message):
        Config.from_dict(changed(path, value))


@pytest.mark.parametrize("data", [None, [], "he", 3], ids=repr)
def test_no_mapping(data):
    with pytest.raises(ConfigError):
        Config.from_dict(data)


CEILINGS = {1024: 26, 2048: 53, 4096: 106, 8192: 214, 16384: 430, 32768: 868}


def sizes_of(total):
    """A chain of as few primes as possible that add up to `total` bits."""
    count = -(-total // 60)
    return [total // count + (index < total % count) for index in range(count)]


@pytest.mark.parametrize(("degree", "bits"), CEILINGS.items())
def test_the_ceiling_of_128_bits(degree, bits):
    """Table 5.2 of ePrint 2024/463, which is stricter than SEAL's own."""
    assert MAX_COEFF_MOD_BITS == CEILINGS
    assert CKKSParams(degree, tuple(sizes_of(bits)), 20).coeff_mod_bit_sizes == tuple(sizes_of(bits))
    with pytest.raises(ConfigError, match=rf"add up to {bits + 1} bits; 128-bit security at .*{degree} allows {bits} "):
        CKKSParams(degree, tuple(sizes_of(bits + 1)), 20)


@pytest.mark.parametrize(("degree", "sizes"), [(2048, [54]), (4096, [54, 55]), (4096, [36, 36, 37])], ids=str)
def test_params_that_seal_alone_would_accept(degree, sizes):
    params = {"poly_modulus_degree": degree, "coeff_mod_bit_sizes": sizes, "scale_bits": 30}
    with pytest.raises(ConfigError, match="ePrint 2024/463"):
        Config.from_dict({"he": {"lib": "pyfhel", "config": params}})


@pytest.mark.parametrize(
    "bomb",
    ["[{0}, {0}, {0}, {0}]", "{{x: {0}, y: {0}, z: {0}}}", "{{<<: [{0}, {0}, {0}, {0}]}}", "{{? [{0}, {0}] : {0}}}"],
    ids=["lists", "blocks", "merges", "keys"],
)
def test_few_lines_that_stand_for_billions(tmp_path: Path, bomb: str) -> None:
    names = [f"a{number}" for number in range(40)]
    lines = ["- &a0 {x: 1}", *(f"- &{new} {bomb.format('*' + old)}" for old, new in pairwise(names))]
    path = tmp_path / "federation.yaml"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ConfigError, match="stand for more than 1,048,576 values"):
        Config.load(path)
    path.write_text("he: &he {config: *he}", encoding="utf-8")
    with pytest.raises(ConfigError, match="stands for a block around it"):
        Config.load(path)


def test_files_that_are_none_or_too_large(tmp_path: Path) -> None:
    path = tmp_path / "federation.yaml"
    path.write_text("# " + "x" * (1 << 20), encoding="utf-8")
    with pytest.raises(ConfigError, match="has more than 1048576 bytes: is it the right file"):
        Config.load(path)
    os.mkfifo(tmp_path / "pipe")
    for name, message in (("pipe", "not a regular file"), ("nothing", "No such file"), (".", "not a regular file")):
        with pytest.raises(ConfigError, match=f"cannot read .*{message}"):
            Config.load(tmp_path / name)


def test_an_anchor_may_be_used_again(tmp_path: Path) -> None:
    path = tmp_path / "federation.yaml"
    path.write_text(
        "he: {preset: smallest}\naggregation: {min_clients: 3, max_clients: 5, max_abs: &x 2.0, max_weight: *x}\n",
        encoding="utf-8",
    )
    assert Config.load(path).aggregation.max_weight == 2.0
