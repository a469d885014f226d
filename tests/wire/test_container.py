"""The container, held against docs/wire-format.md: what is written, and every header that is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from container import (
    AGGREGATE,
    CALIBRATION,
    MODEL,
    SCALES,
    UPDATE,
    Container,
    block_nbytes,
    block_values,
    canonical,
    element_count,
    tag_moduli,
    weight_values,
)
from federation import SMALL, TINY, TINY_AGGREGATION, federate, read_config
from section_numbers import Numbers
from signed import sign_federation

from secagg import Header, Layout, Update
from secagg.config import Encrypt
from secagg.errors import DuplicateError, FormatError, LayoutError
from secagg.scheme.params import CKKSParams
from secagg.wire.tail import check_tags

STATE = {"w": np.zeros((2, 3), np.float32), "c": np.ones(5), "n": np.arange(3)}


#: All that the params of each scheme say on the wire.
FIELDS = {
    "CKKS": {"poly_modulus_degree", "coeff_mod_bit_sizes", "scale_bits", "complex_slots", "seeded"},
    "BGV": {
        "poly_modulus_degree",
        "coeff_mod_bit_sizes",
        "plain_modulus_bits",
        "value_bits",
        "rounding",
        "overflow",
        "error_feedback",
        "seeded",
    },
    "FLASHE": {"value_bits", "rounding", "overflow", "error_feedback"},
}


def update_of(variant):
    return federate(variant, encrypt={"include": ["w"]}).site().encrypt(STATE, round=9).to_bytes()


@pytest.fixture(scope="module")
def blob():
    return update_of("tenseal")


@pytest.fixture
def container(blob):
    return Container.read(blob)


def test_an_update_is_as_the_format_says(lib):
    """Taken apart and put together by code that shares nothing with secagg."""
    federation = federate(lib, encrypt={"include": ["w"]})
    update = federation.site("a.B-9_").encrypt(STATE, weight=0.5, round=2**32 - 1)
    container = Container.read(update.to_bytes())
    assert container.to_bytes() == update.to_bytes()
    params = federation.config.params.to_dict()
    assert params.keys() == {"scheme"} | FIELDS[params["scheme"]]
    assert params.items() >= SMALL[params["scheme"]].items()
    nonce = update.header.contributions[0].nonce
    assert len(nonce) == 32
    assert container.header == {
        "aggregation": {name: TINY_AGGREGATION[name] for name in ("max_abs", "max_clients", "max_weight")}
        | {"precision": "fixed"},
        "base": None,
        "calibration": None,
        "contributions": [["a.B-9_", nonce.hex()]],
        "epoch": 0,
        "key": federation.keys.server.fingerprint,
        "layout": [
            [["w"], "float32", [2, 3], "encrypted", False],
            [["c"], "float64", [5], "clear", False],
            [["n"], "int64", [3], "local", False],
        ],
        "manifest": None,
        "params": params,
        "round": 2**32 - 1,
    }
    assert [len(payload) for payload in container.payloads] == [block_nbytes(params), 8 * 4096]
    moduli = tag_moduli({"primes": federation.keys.server.primes})
    assert len(container.tags) == len(moduli) == update.header.tag_count
    assert all(tag < modulus for tag, modulus in zip(container.tags, moduli, strict=True))


MEASURED = {"overflow": "clip", "rounding": "nearest", "error_feedback": True, "value_bits": 6}


def measured(variant, precision, max_weight=None):
    """A federation whose scales are measured; the keys are those of fixed ones."""
    federation = federate(variant)
    config = federation.config.to_dict()
    config["he"]["config"] |= MEASURED
    config["aggregation"] |= {"precision": precision, "max_abs": None, "max_weight": max_weight}
    return replace(federation, config=read_config(json.dumps(config | {"encrypt": {"include": ["w"]}})))


@pytest.mark.parametrize("variant", ["flashe", "seal-BGV", "pyfhel-BGV"])
def test_what_is_measured_is_as_the_format_says(variant):
    """A calibration, wholly encrypted whatever `encrypt` says, its sum, and what names it in updates."""
    federation, weights = measured(variant, "auto"), [0.5, 7.0]
    params, numbers = federation.config.params.to_dict(), federation.config.aggregation.to_dict()
    sites, aggregator = federation.sites(2), federation.aggregator(kind="calibration")
    for site, weight in zip(sites, weights, strict=True):
        calibration = site.calibrate(STATE, weight)
        container = Container.read(calibration.to_bytes())
        assert container.to_bytes() == calibration.to_bytes()
        assert (container.kind, container.header["calibration"]) == (CALIBRATION, None)
        blocks = -(-(1 + 2 * 192) // block_values(params, numbers, 1))
        assert [len(payload) for payload in container.payloads] == [blocks * block_nbytes(params)]
        assert len(container.tags) == len(tag_moduli({"primes": federation.keys.server.primes}))
        aggregator.add(calibration)
    scales = aggregator.finish()
    container = Container.read(scales.to_bytes())
    assert container.to_bytes() == scales.to_bytes()
    assert (container.kind, container.header["calibration"]) == (SCALES, None)
    update = Container.read(sites[0].encrypt(STATE, 0.5, calibration=scales).to_bytes())
    assert update.header["calibration"] == scales.digest().hex()
    assert update.header["aggregation"] == {
        "max_abs": None,
        "max_clients": 4,
        "max_weight": None,
        "precision": "auto",
    }


def test_blocks_are_as_the_format_says(lib):
    """The weight and the values fill whole blocks, and one value more takes another block."""
    federation = federate(lib)
    params, numbers = federation.config.params.to_dict(), federation.config.aggregation.to_dict()
    room = 2 * block_values(params, numbers) - weight_values(params)
    for more, blocks in ((0, 2), (1, 3)):
        update = federation.site().encrypt({"w": np.zeros(room + more, np.float16)})
        (payload,) = Container.read(update.to_bytes()).payloads
        assert len(payload) == blocks * block_nbytes(params)


@pytest.mark.parametrize("variant", ["flashe", "seal-BGV"])
@pytest.mark.parametrize("max_weight", [None, 100.0])
def test_blocks_of_measured_scales_are_as_the_format_says(variant, max_weight):
    """As many as weight, bins, counts, digits and values fill, to the value."""
    federation = measured(variant, "previous", max_weight)
    params, numbers = federation.config.params.to_dict(), federation.config.aggregation.to_dict()
    room = 9 * block_values(params, numbers)
    layout = [[["w"], "float16", [1, 1], "encrypted", False], [["b"], "float16", [1], "encrypted", False]]
    header = {"params": params, "aggregation": numbers, "layout": layout}
    layout[0][2] = [1, room - sum(Numbers.of(header)) + Numbers.of(header).other]
    layout[0][2][1] -= sum(Numbers.of(header)) - room  # which has made the other tensor a small one
    assert Numbers.of(header).small == 4
    assert sum(Numbers.of(header)) == room
    federation = replace(federation, config=replace(federation.config, encrypt=Encrypt()))
    for more, blocks in ((0, 9), (1, 10)):
        state = {"w": np.zeros((1, layout[0][2][1] + more), np.float16), "b": np.zeros(1, np.float16)}
        (payload,) = Container.read(federation.site().encrypt(state).to_bytes()).payloads
        assert len(payload) == blocks * block_nbytes(params)


def test_an_aggregate_is_as_the_format_says(lib):
    federation = federate(lib, encrypt={"include": ["w"]})
    aggregate = federation.sum([STATE, STATE, STATE])
    container = Container.read(aggregate.to_bytes())
    assert container.to_bytes() == aggregate.to_bytes()
    assert container.kind == AGGREGATE
    assert [site for site, _ in container.header["contributions"]] == ["site-1", "site-2", "site-3"]


def test_the_header_is_read_back(container):
    header = Header.from_head(container.head)
    assert header.head == container.head
    assert (header.kind, header.site, header.sites, header.round) == ("update", "site-1", ("site-1",), 9)
    assert header.epoch == 0
    assert header.params.to_dict() == TINY | {"complex_slots": False, "seeded": True}
    assert [(spec.name, spec.dtype, spec.shape, spec.role, spec.size) for spec in header.layout.tensors] == [
        ("w", "float32", (2, 3), "encrypted", 6),
        ("c", "float64", (5,), "clear", 5),
        ("n", "int64", (3,), "local", 3),
    ]
    assert header.nbytes == len(container.to_bytes())


def test_a_base_is_as_the_format_says(lib):
    base = bytes(range(32))
    update = federate(lib).site().encrypt({"w": np.zeros(3)}, base=base)
    container = Container.read(update.to_bytes())
    assert container.header["base"] == base.hex()
    assert Header.from_head(container.head).base == base


def test_a_manifest_is_as_the_format_says(lib):
    signed = sign_federation(federate(lib))
    states = [{"w": np.zeros(3)}] * 2
    updates = signed.encrypt(states)
    for blob in (*updates, signed.add(updates)):
        container = Container.read(blob.to_bytes())
        assert container.header["manifest"] == signed.project.signed[-96:-64].hex() == signed.project.digest.hex()
        assert Header.from_head(container.head).manifest == signed.project.digest
    stream = BytesIO()
    signed.site().encrypt_model(stream, states[0], round=1)
    assert Container.read(stream.getvalue()).header["manifest"] is None


def test_tags_for_every_size_of_prime():
    """So many that a prime's tags have 112 bits, one bit of each not counted."""
    assert [element_count(bits) for bits in (12, 23, 27, 40, 53, 57, 58, 60)] == [11, 6, 5, 3, 3, 2, 2, 2]
    for sizes, count in (([60], 2), ([60, 40, 40], 5), ([36, 36, 37], 8), ([23], 6)):
        params = CKKSParams(8192, tuple(sizes), 20)
        header = replace(Header.from_head(Container.read(update_of("tenseal")).head), params=params)
        assert header.tag_count == 1 + count
        assert header.tail_nbytes == 16 + 8 * count + 96 + 32
        assert replace(header, kind="model").tag_count == 0


@pytest.mark.parametrize("kind", [UPDATE, AGGREGATE, MODEL])
def test_a_tail_of_another_length(container, kind):
    """The header says how many tags and proofs there are, whatever the kind."""
    container.kind = kind
    if kind == MODEL:
        container.payloads, container.header["layout"], container.tags = [], [], []
    for change in (-96, -8, -1, 1, 8, 96):
        tail = container.make_tail()
        other = container.copy()
        other.tail = tail[:change] if change < 0 else tail + bytes(change)
        with pytest.raises(FormatError, match="truncated" if change < 0 else "trailing bytes"):
            Update.from_bytes(other.to_bytes())
    assert Update.from_bytes(container.to_bytes()).tail.proofs[0].signature == bytes(64)


def test_names_of_any_script():
    state = {"слой.ä": np.ones(1), "层": np.ones(1), 'quote"\\': np.ones(1), "x" * 512: np.ones(1)}
    federation = federate("tenseal")
    update = federation.site().encrypt(state)
    assert Update.from_bytes(update.to_bytes()).header.layout.sent[0].names == ("слой.ä",)
    assert list(federation.site().decrypt(federation.sum([state, state]))) == list(state)


# Each edit is of a header that is otherwise good; digests fit.


def put(*path, value):
    def edit(header):
        block = header
        for key in path[:-1]:
            block = block[key]
        block[path[-1]] = value

    return edit


def drop(*path):
    def edit(header):
        block = header
        for key in path[:-1]:
            block = block[key]
        del block[path[-1]]

    return edit


def spec(**changes):
    """Change the first tensor of the layout."""
    places = {"names": 0, "dtype": 1, "shape": 2, "role": 3, "nonnegative": 4}

    def edit(header):
        for field, value in changes.items():
            header["layout"][0][places[field]] = value

    return edit


NONCE = "ab" * 32
EDITS = {
    "round missing": (drop("round"), "has the keys"),
    "a key more": (put("more", value=1), "has the keys"),
    "round negative": (put("round", value=-1), "round is -1"),
    "round too large": (put("round", value=2**32), "round is 4294967296"),
    "round huge": (put("round", value=10**4000), "round is 1000"),
    "round a float": (put("round", value=9.0), "round is 9.0"),
    "round a bool": (put("round", value=True), "round is True"),
    "round a text": (put("round", value="9"), "round is '9'"),
    "round null": (put("round", value=None), "round is None"),
    "base missing": (drop("base"), "has the keys"),
    "base short": (put("base", value="ab" * 31), "base is not 32 bytes"),
    "base long": (put("base", value="ab" * 33), "base is not 32 bytes"),
    "base in capitals": (put("base", value="AB" * 32), "base is not 32 bytes"),
    "base of other digits": (put("base", value="٣" * 64), "base is not 32 bytes"),
    "base empty": (put("base", value=""), "base is not 32 bytes"),
    "base a number": (put("base", value=0), "base is not 32 bytes"),
    "base false": (put("base", value=False), "base is not 32 bytes"),
    "base a list": (put("base", value=["ab" * 32]), "base is not 32 bytes"),
    "manifest missing": (drop("manifest"), r"without \['manifest'\]: make the update again"),
    "manifest short": (put("manifest", value="ab" * 31), "manifest is not 32 bytes"),
    "manifest long": (put("manifest", value="ab" * 33), "manifest is not 32 bytes"),
    "manifest in capitals": (put("manifest", value="AB" * 32), "manifest is not 32 bytes"),
    "manifest of other digits": (put("manifest", value="٣" * 64), "manifest is not 32 bytes"),
    "manifest empty": (put("manifest", value=""), "manifest is not 32 bytes"),
    "manifest a number": (put("manifest", value=0), "manifest is not 32 bytes"),
    "manifest false": (put("manifest", value=False), "manifest is not 32 bytes"),
    "manifest a list": (put("manifest", value=["ab" * 32]), "manifest is not 32 bytes"),
    "calibration missing": (drop("calibration"), r"without \['calibration'\]: make the update again"),
    "calibration of fixed scales": (put("calibration", value="ab" * 32), "names scales that it has not"),
    "calibration short": (put("calibration", value="ab" * 31), "calibration is not 32 bytes"),
    "calibration in capitals": (put("calibration", value="AB" * 32), "calibration is not 32 bytes"),
    "calibration of other digits": (put("calibration", value="٣" * 64), "calibration is not 32 bytes"),
    "calibration empty": (put("calibration", value=""), "calibration is not 32 bytes"),
    "calibration false": (put("calibration", value=False), "calibration is not 32 bytes"),
    "calibration a list": (put("calibration", value=["ab" * 32]), "calibration is not 32 bytes"),
    "epoch missing": (drop("epoch"), "has the keys"),
    "epoch negative": (put("epoch", value=-1), "epoch is -1"),
    "epoch too large": (put("epoch", value=2**32), "epoch is 4294967296"),
    "epoch a float": (put("epoch", value=0.0), "epoch is 0.0"),
    "epoch a bool": (put("epoch", value=False), "epoch is False"),
    "epoch null": (put("epoch", value=None), "epoch is None"),
    "key of other length": (put("key", value="ab"), "key fingerprint"),
    "key in capitals": (put("key", value="AB" * 32), "key fingerprint"),
    "key no text": (put("key", value=7), "key fingerprint"),
    "key of other digits": (put("key", value="٣" * 64), "key fingerprint"),
    "params a list": (put("params", value=[]), "params is not an object"),
    "params with a key more": (put("params", "more", value=1), "unknown key 'more'"),
    "params without degree": (drop("params", "poly_modulus_degree"), "needs 'poly_modulus_degree'"),
    "params without scheme": (drop("params", "scheme"), "canonical"),
    "degree odd": (put("params", "poly_modulus_degree", value=2047), "poly_modulus_degree"),
    "degree zero": (put("params", "poly_modulus_degree", value=0), "poly_modulus_degree"),
    "degree a list": (put("params", "poly_modulus_degree", value=[2048]), "poly_modulus_degree"),
    "sizes empty": (put("params", "coeff_mod_bit_sizes", value=[]), "coeff_mod_bit_sizes"),
    "sizes a text": (put("params", "coeff_mod_bit_sizes", value="27"), "coeff_mod_bit_sizes"),
    "sizes nested": (put("params", "coeff_mod_bit_sizes", value=[[27]]), "coeff_mod_bit_sizes"),
    "sizes over the ceiling": (put("params", "coeff_mod_bit_sizes", value=[27, 27]), "ePrint 2024/463"),
    "scale huge": (put("params", "scale_bits", value=10**400), "scale_bits"),
    "complex slots not said": (drop("params", "complex_slots"), "canonical"),
    "complex slots a number": (put("params", "complex_slots", value=1), "complex_slots is 1"),
    "seeded not said": (drop("params", "seeded"), "canonical"),
    "seeded a text": (put("params", "seeded", value="yes"), "seeded is 'yes'"),
    "seeded null": (put("params", "seeded", value=None), "seeded is None"),
    "whole ciphertexts announced, c0 there": (put("params", "seeded", value=False), "truncated"),
    "a key of BGV": (put("params", "value_bits", value=16), "unknown key 'value_bits'; CKKS knows"),
    "scheme unknown": (put("params", "scheme", value="BFV"), "scheme is 'BFV'"),
    "scheme a list": (put("params", "scheme", value=["CKKS"]), "scheme is"),
    "aggregation a list": (put("aggregation", value=[]), "aggregation is not an object"),
    "aggregation with min_clients": (put("aggregation", "min_clients", value=2), "other keys"),
    "aggregation without max_abs": (drop("aggregation", "max_abs"), "other keys"),
    "aggregation without precision": (drop("aggregation", "precision"), "other keys"),
    "precision unknown": (put("aggregation", "precision", value="best"), "precision is 'best'"),
    "precision null": (put("aggregation", "precision", value=None), "precision is None"),
    "precision a list": (put("aggregation", "precision", value=["fixed"]), "precision is"),
    "precision measured, with max_abs": (put("aggregation", "precision", value="auto"), "leave one out"),
    "max_abs null": (put("aggregation", "max_abs", value=None), "canonical|hold"),
    "max_weight null": (put("aggregation", "max_weight", value=None), "canonical"),
    "max_clients one": (put("aggregation", "max_clients", value=1), "max_clients is 1"),
    "max_clients huge": (put("aggregation", "max_clients", value=10**9), "max_clients is"),
    "max_abs zero": (put("aggregation", "max_abs", value=0.0), "max_abs is 0"),
    "max_abs huge": (put("aggregation", "max_abs", value=10**400), "max_abs is"),
    "max_abs a text": (put("aggregation", "max_abs", value="1"), "max_abs is '1'"),
    "max_abs empty": (put("aggregation", "max_abs", value={}), "max_abs is empty"),
    "max_abs with an empty pattern": (put("aggregation", "max_abs", value={"": 1.0}), "is not a pattern"),
    "max_abs a whole number": (put("aggregation", "max_abs", value=1), "canonical"),
    "max_weight negative": (put("aggregation", "max_weight", value=-1.0), "max_weight is -1"),
    "contributions an object": (put("contributions", value={}), "no list of 1"),
    "contributions empty": (put("contributions", value=[]), "no list of 1"),
    "two contributions": (
        put("contributions", value=[["a", NONCE], ["b", "cd" * 32]]),
        "an update has one contribution",
    ),
    "a contribution a text": (put("contributions", value=["a"]), r"not \[site, nonce\]"),
    "a contribution of three": (put("contributions", value=[["a", NONCE, 1]]), r"not \[site, nonce\]"),
    "site empty": (put("contributions", 0, 0, value=""), "site name ''"),
    "site with a slash": (put("contributions", 0, 0, value="../a"), "site name"),
    "site of dots": (put("contributions", 0, 0, value=".."), "site name"),
    "site too long": (put("contributions", 0, 0, value="a" * 65), "site name"),
    "site no text": (put("contributions", 0, 0, value=None), "site name None"),
    "site with a line end": (put("contributions", 0, 0, value="site\n"), "site name"),
    "nonce short": (put("contributions", 0, 1, value=NONCE[2:]), "nonce is not 32 bytes"),
    "nonce long": (put("contributions", 0, 1, value=NONCE + "00"), "nonce is not 32 bytes"),
    "nonce in capitals": (put("contributions", 0, 1, value=NONCE.upper()), "nonce is not 32 bytes"),
    "nonce with a space": (put("contributions", 0, 1, value=" " + NONCE[1:]), "nonce is not 32 bytes"),
    "nonce no text": (put("contributions", 0, 1, value=0), "nonce is not 32 bytes"),
    "layout an object": (put("layout", value={}), "layout is no list"),
    "layout null": (put("layout", value=None), "layout is no list"),
    "a tensor a text": (put("layout", 0, value="w"), r"not \[names, dtype, shape, role, nonnegative\]"),
    "a tensor of three": (put("layout", 0, value=[["w"], "float32", []]), r"not \[names, dtype, shape, role, non"),
    "a name twice": (spec(names=["c"]), "names a tensor twice"),
    "a second name twice": (spec(names=["w", "c"]), "names a tensor twice"),
    "the same name twice": (spec(names=["w", "w"]), "names a tensor twice"),
    "names a text": (spec(names="w"), "name that is empty"),
    "no name": (spec(names=[]), "name that is empty"),
    "a name empty": (spec(names=[""]), "name that is empty"),
    "a name too long": (spec(names=["x" * 513]), "too long"),
    "a name with a line end": (spec(names=["a\n"]), "not printable"),
    "a second name with a line end": (spec(names=["w", "a\n"]), "not printable"),
    "a name with half a character": (spec(names=["\ud800"]), "not printable"),
    "a name no text": (spec(names=[3]), "name"),
    "a local tensor of two names": (put("layout", 2, 0, value=["n", "m"]), "is local, and has several names"),
    "a local tensor that is nonnegative": (put("layout", 2, 4, value=True), "neither nonnegative nor not"),
    "nonnegative a number": (spec(nonnegative=1), "neither nonnegative nor not"),
    "nonnegative null": (spec(nonnegative=None), "neither nonnegative nor not"),
    "a dtype unknown": (spec(dtype="complex64"), "no known dtype"),
    "a dtype no text": (spec(dtype=["float32"]), "no known dtype"),
    "a role unknown": (spec(role="plain"), "no valid role"),
    "a role no text": (spec(role=["clear"]), "no valid role"),
    "a float that is local": (spec(role="local"), "no valid role"),
    "an integer that is encrypted": (spec(dtype="int64"), "no valid role"),
    "an integer that is clear": (spec(dtype="int64", role="clear"), "no valid role"),
    "a shape no list": (spec(shape=6), "no valid shape"),
    "a shape negative": (spec(shape=[-2, -3]), "no valid shape"),
    "a shape of floats": (spec(shape=[2.0, 3]), "no valid shape"),
    "a shape of bools": (spec(shape=[True]), "no valid shape"),
    "a shape of 33 dimensions": (spec(shape=[1] * 33), "no valid shape"),
    "an extent too large": (spec(shape=[2**40 + 1]), "no valid shape"),
    "no values in absurd extents": (spec(shape=[0, 2**40, 2**40]), "no valid shape: more than 1099511627776 values"),
    "more values than the format allows": (spec(shape=[2**40, 2]), "more than 1099511627776 values"),
    "values beyond 64 bits": (spec(shape=[2**40] * 32), "more than 1099511627776 values"),
    "far more values than bytes": (spec(shape=[2**39]), "truncated: .*, the header describes"),
    "more values than bytes": (spec(shape=[2000]), "truncated"),
    "fewer values than bytes": (put("layout", value=[]), "trailing bytes"),
    "a block that fits no frame": (
        put(
            "params",
            value=TINY
            | {"poly_modulus_degree": 32768, "coeff_mod_bit_sizes": [60] * 10}
            | {"complex_slots": False, "seeded": True},
        ),
        "does not fit a frame",
    ),
}
#: Of BGV and FLASHE alike.
QUANTISED_EDITS = {
    "value_bits missing": (drop("params", "value_bits"), "needs 'value_bits'"),
    "value_bits too few": (put("params", "value_bits", value=2), "value_bits is 2; use a whole number from 3 to 24"),
    "value_bits too many": (put("params", "value_bits", value=25), "value_bits is 25; use a whole number from 3 to 24"),
    "value_bits a float": (put("params", "value_bits", value=8.0), "value_bits is 8.0"),
    "value_bits a bool": (put("params", "value_bits", value=True), "value_bits is True"),
    "rounding unknown": (put("params", "rounding", value="up"), "rounding is 'up'"),
    "rounding a list": (put("params", "rounding", value=["nearest"]), "rounding is"),
    "overflow unknown": (put("params", "overflow", value="wrap"), "overflow is 'wrap'"),
    "error feedback a number": (put("params", "error_feedback", value=0), "error_feedback is 0"),
    "rounding not said": (drop("params", "rounding"), "canonical"),
    "a key of CKKS": (put("params", "scale_bits", value=20), "unknown key 'scale_bits'"),
    "one site": (put("aggregation", "max_clients", value=1), "max_clients is 1"),
}
BGV_EDITS = QUANTISED_EDITS | {
    "plain modulus missing": (drop("params", "plain_modulus_bits"), "needs 'plain_modulus_bits'"),
    "plain modulus huge": (put("params", "plain_modulus_bits", value=61), "plain_modulus_bits is 61; .* use 14 to 60"),
    "plain modulus tiny": (put("params", "plain_modulus_bits", value=13), "plain_modulus_bits is 13"),
    "plain modulus a text": (put("params", "plain_modulus_bits", value="60"), "plain_modulus_bits is '60'"),
    "plain modulus of a prime's bits": (put("params", "plain_modulus_bits", value=34), "also in coeff_mod_bit_sizes"),
    "no room for the sum in a slot": (
        lambda header: header["params"].update(value_bits=16, plain_modulus_bits=17),
        "value_bits 16 from max_clients 4 need 19 bits, plain_modulus_bits is 17",
    ),
    "no room for the noise": (
        put("params", "coeff_mod_bit_sizes", value=[33, 33, 24]),
        "noise of the sum of max_clients 4 updates",
    ),
    "no room for the noise of more sites": (
        put("aggregation", "max_clients", value=10_000),
        "noise of the sum of max_clients 10000 updates",
    ),
    "no room for the noise of public keys": (put("params", "seeded", value=False), "public-key ciphertexts"),
    "primes missing": (drop("params", "coeff_mod_bit_sizes"), "needs 'coeff_mod_bit_sizes'"),
    "primes over the ceiling": (put("params", "coeff_mod_bit_sizes", value=[60, 60]), "ePrint 2024/463"),
    "complex slots": (put("params", "complex_slots", value=False), "unknown key 'complex_slots'"),
}
FLASHE_EDITS = QUANTISED_EDITS | {
    "a degree": (put("params", "poly_modulus_degree", value=4096), "unknown key 'poly_modulus_degree'; FLASHE knows"),
    "primes": (put("params", "coeff_mod_bit_sizes", value=[60]), "unknown key 'coeff_mod_bit_sizes'"),
    "a plain modulus": (put("params", "plain_modulus_bits", value=60), "unknown key 'plain_modulus_bits'"),
    "seeded": (put("params", "seeded", value=True), "unknown key 'seeded'"),
    "another scheme": (put("params", "scheme", value="CKKS"), "unknown key"),
}


@pytest.mark.parametrize(("edit", "match"), EDITS.values(), ids=EDITS)
def test_a_header_that_says_something_wrong(container, edit, match):
    edit(container.header)
    with pytest.raises(FormatError, match=match) as caught:
        Update.from_bytes(container.to_bytes())
    assert caught.type is FormatError
    assert len(str(caught.value)) < 5000


EXACT_EDITS = {
    f"{variant}, {name}": (variant, *case)
    for variant, edits in (("seal-BGV", BGV_EDITS), ("flashe", FLASHE_EDITS))
    for name, case in edits.items()
}


@pytest.mark.parametrize(("variant", "edit", "match"), EXACT_EDITS.values(), ids=EXACT_EDITS)
def test_a_header_of_an_exact_scheme_that_says_something_wrong(variant, edit, match):
    container = Container.read(update_of(variant))
    edit(container.header)
    with pytest.raises(FormatError, match=match) as caught:
        Update.from_bytes(container.to_bytes())
    assert caught.type is FormatError


def test_a_model_that_names_a_manifest(container):
    """It outlives manifests."""
    container.kind, container.payloads, container.tags = MODEL, [], []
    container.header["layout"] = []
    assert Update.from_bytes(container.to_bytes()).header.manifest is None
    container.header["manifest"] = "ab" * 32
    with pytest.raises(FormatError, match="a model names a manifest"):
        Update.from_bytes(container.to_bytes())


def test_a_tag_beyond_its_modulus(container):
    """That of integers is refused as it is read; the primes of the others are those of a key, which adds them."""
    moduli = tag_moduli({"primes": federate("tenseal").keys.server.primes})
    for index, modulus in enumerate(moduli):
        for tag in (modulus, modulus + 1, (2**64 if index else 2**128) - 1):
            other = container.copy()
            other.tags[index] = tag
            update = Update.from_bytes(other.to_bytes())
            with pytest.raises(FormatError, match="below"):
                check_tags(update.tail.tags, tuple(moduli))
            other.tags[index] = modulus - 1
            check_tags(Update.from_bytes(other.to_bytes()).tail.tags, tuple(moduli))


def rewritten(change):
    """Other bytes for the same header."""
    return lambda container: change(canonical(container.header))


TEXTS = {
    "empty": (lambda container: b"", "not strict JSON"),
    "no JSON": (lambda container: b"{", "not strict JSON"),
    "a number": (lambda container: b"1", "not a JSON object"),
    "a list": (lambda container: b"[]", "not a JSON object"),
    "null": (lambda container: b"null", "not a JSON object"),
    "an object without keys": (lambda container: b"{}", "has the keys"),
    "another encoding": (lambda container: b'{"\xff": 1}', "not strict JSON"),
    "UTF-16": (rewritten(lambda text: text.decode().encode("utf-16")), "not strict JSON"),
    "a byte order mark": (rewritten(lambda text: b"\xef\xbb\xbf" + text), "not strict JSON"),
    "nested without end": (lambda container: b"[" * 200_000, "not strict JSON"),
    "a number without end": (lambda container: b'{"round":' + b"1" * 5000 + b"}", "not strict JSON"),
    "NaN": (rewritten(lambda text: text.replace(b'"max_weight":1.0', b'"max_weight":NaN')), "not strict JSON"),
    "Infinity": (
        rewritten(lambda text: text.replace(b'"max_weight":1.0', b'"max_weight":Infinity')),
        "not strict JSON",
    ),
    "a number that overflows": (
        rewritten(lambda text: text.replace(b'"max_weight":1.0', b'"max_weight":1e999')),
        "max_weight is inf",
    ),
    "a key twice": (rewritten(lambda text: text.replace(b'"round":9', b'"round":9,"round":9')), "not strict JSON"),
    "something behind it": (rewritten(lambda text: text + b"x"), "not strict JSON"),
    "a line end behind it": (rewritten(lambda text: text + b"\n"), "canonical"),
    "spaces": (rewritten(lambda text: json.dumps(json.loads(text), sort_keys=True).encode()), "canonical"),
    "another order of keys": (
        rewritten(lambda text: json.dumps(dict(reversed(json.loads(text).items())), separators=(",", ":")).encode()),
        "canonical",
    ),
    "an escaped letter": (rewritten(lambda text: text.replace(b'"w"', b'"\\u0077"')), "canonical"),
    "another form of a number": (
        rewritten(lambda text: text.replace(b'"max_weight":1.0', b'"max_weight":1.00')),
        "canonical",
    ),
    "a negative zero": (rewritten(lambda text: text.replace(b'"round":9', b'"round":-0')), "canonical"),
}


@pytest.mark.parametrize(("make", "match"), TEXTS.values(), ids=TEXTS)
def test_a_header_that_is_written_otherwise(container, make, match):
    container.header = make(container)
    with pytest.raises(FormatError, match=match):
        Update.from_bytes(container.to_bytes())


PREAMBLES = {
    "another magic": ({"magic": b"SECAGG\n\n"}, "magic"),
    "version 0": ({"version": 0}, "version 0"),
    "version 1": ({"version": 1}, "format version 1; this release reads version 4"),
    "version 2": ({"version": 2}, "format version 2; this release reads version 4"),
    "version 3": ({"version": 3}, "format version 3; this release reads version 4"),
    "version 5": ({"version": 5}, "format version 5"),
    "kind 0": ({"kind": 0}, "unknown kind of container 0"),
    "kind 9": ({"kind": 9}, "unknown kind of container 9"),
    "a calibration": ({"kind": 7}, "kind 'calibration' is of precision 'auto', not of 'fixed'"),
    "scales": ({"kind": 8}, "kind 'scales' is of precision 'auto', not of 'fixed'"),
    "a project": ({"kind": 6}, "a project, not an update"),
    "a server key": ({"kind": 4}, "a server-key, not an update"),
    "the reserved byte": ({"reserved": 1}, "reserved byte 1"),
    "a header over the cap": ({"header_nbytes": (4 << 20) + 1}, "claims 4194305 bytes; the format allows 4194304"),
    "the largest header of all": ({"header_nbytes": 2**32 - 1}, "claims 4294967295 bytes"),
    "a header longer than the file": ({"header_nbytes": 4 << 20}, "truncated: .* the head alone takes 4194352"),
    "a header too short": ({"header_nbytes": 5}, "header is damaged"),
    "a header of nothing": ({"header_nbytes": 0}, "header is damaged"),
}


@pytest.mark.parametrize(("change", "match"), PREAMBLES.values(), ids=PREAMBLES)
def test_a_preamble_that_says_something_wrong(container, change, match):
    for name, value in change.items():
        setattr(container, name, value)
    with pytest.raises(FormatError, match=match):
        Update.from_bytes(container.to_bytes())


def test_a_header_at_the_cap():
    """A model of many tensors with long names fits until 4 MiB, and beyond is refused at the site."""
    site = federate("tenseal").site()
    state = {f"{index:0500}": np.float32(0) for index in range(7700)}
    update = site.encrypt(state)
    assert 4_100_000 < len(update.header.head) < (4 << 20)
    assert Update.from_bytes(update.to_bytes()).header == update.header
    more = state | {f"more{index:0496}": np.float32(0) for index in range(300)}
    with pytest.raises(LayoutError, match="do not fit the header of a sum, 4194304 bytes"):
        site.encrypt(more)
    with pytest.raises(FormatError, match="the format allows 4194304"):
        _ = replace(update.header, layout=Layout.of(more)).head


@pytest.mark.parametrize(
    ("contributions", "match"),
    [
        ([["a", NONCE], ["a", "cd" * 32]], "site a contributes twice"),
        ([["a", NONCE], ["b", NONCE]], "nonce abab.* contributes twice"),
    ],
    ids=["site", "nonce"],
)
def test_an_aggregate_that_lists_someone_twice(container, contributions, match):
    container.kind = AGGREGATE
    container.header["contributions"] = contributions
    with pytest.raises(DuplicateError, match=match):
        Update.from_bytes(container.to_bytes())


def test_an_aggregate_of_more_than_can_be_listed(container):
    container.kind = AGGREGATE
    container.header["contributions"] = [[f"s{index}", f"{index:064x}"] for index in range(10_001)]
    with pytest.raises(FormatError, match="no list of 1 to 10000"):
        Update.from_bytes(container.to_bytes())
    container.header["contributions"].pop()
    assert len(Update.from_bytes(container.to_bytes()).header.sites) == 10_000


def test_a_layout_of_more_tensors_than_allowed(container):
    container.header["layout"] = [[[str(index)], "bool", [], "local", False] for index in range(100_001)]
    with pytest.raises(FormatError, match="at most 100000 tensors"):
        Header.from_head(container.head)


@pytest.mark.parametrize(
    "edit",
    [
        put("params", "coeff_mod_bit_sizes", value=[20] * 10**6),
        put("params", "x" * 10**6, value=1),
        put("x" * 10**6, value=1),
        put("aggregation", "max_abs", value={"x" * 10**6: -1.0}),
    ],
    ids=["sizes", "a key of params", "a key", "a pattern"],
)
def test_a_message_is_short_whatever_the_header_says(container, edit):
    edit(container.header)
    with pytest.raises(FormatError) as caught:
        Header.from_head(container.head)
    assert len(str(caught.value)) < 500


def test_every_truncation_of_a_head(container):
    for size in range(len(container.head)):
        with pytest.raises(FormatError):
            Update.from_bytes(container.to_bytes()[:size])
