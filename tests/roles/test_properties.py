"""Properties over random models, configurations and headers."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import yaml
from container import SUMS, Container, canonical, fraction_bits, frame_digest, frame_sizes
from federation import ROUNDING, VARIANTS, federate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secagg import Config, Header, Layout, Update
from secagg.errors import DigestError
from secagg.scheme.aggregation import Aggregation
from secagg.scheme.clear_codec import FixedPointCodec
from secagg.scheme.params import (
    MAX_COEFF_MOD_BITS,
    OVERFLOW_CHOICES,
    ROUNDING_CHOICES,
    BGVParams,
    CKKSParams,
    FLASHEParams,
)
from secagg.scheme.presets import plan_params
from secagg.scheme.tensors import LOCAL_DTYPES
from secagg.wire.header import Contribution
from secagg.wire.layout import TensorSpec
from secagg.wire.tail import Proof, Tail

names = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=12).filter(
    lambda name: name.isprintable() and not {"_orig_mod", "module", "_module"} & set(name.split("."))  # of wrappers
)
small_shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)
long_shapes = st.integers(-8, 4).map(lambda more: ("block", more))  # a block and so many values
float_dtypes = st.sampled_from(["float16", "float32", "float64"])
weights = st.floats(0.1, 1.0)  # at these small params, noise spoils the mean of smaller ones


@st.composite
def models(draw):
    """Names with dtypes and shapes; integers among them."""
    specs = st.tuples(float_dtypes | st.sampled_from(["int64", "bool"]), small_shapes | long_shapes)
    return draw(st.dictionaries(names, specs, max_size=5))


def fill(model, block, rng):
    """Values in [-1, 1], the ends more often than chance would have them."""

    def values(dtype, shape):
        if shape[:1] == ("block",):
            shape = (block + shape[1],)
        if dtype not in ROUNDING:
            return np.ones(shape, dtype)
        return np.clip(rng.uniform(-1.2, 1.2, shape), -1, 1).astype(dtype)

    return {name: values(*spec) for name, spec in model.items()}


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(models(), st.lists(weights, min_size=2, max_size=4), st.integers(0, 2**32 - 1), st.data())
@pytest.mark.usefixtures("kernels")
@pytest.mark.filterwarnings("ignore::secagg.errors.PrecisionWarning")  # a single value may be far below a step
def test_any_model_any_weights_any_number_of_sites(mode, model, weights, seed, data):
    floats = [name for name, (dtype, _) in model.items() if dtype in ROUNDING]
    if not floats:
        model, floats = model | {"one": ("float32", ())}, ["one"]
    plain = [name.replace("[", "[[]").replace("*", "[*]").replace("?", "[?]") for name in floats[1:]]
    exclude = data.draw(st.lists(st.sampled_from(plain), unique=True)) if plain else []
    federation = federate(mode, encrypt={"exclude": exclude} if exclude else "all")
    rng = np.random.default_rng(seed)
    states = [fill(model, federation.codec.block_values, rng) for _ in weights]
    aggregate = federation.sum(states, weights)
    aggregate = Update.from_bytes(aggregate.to_bytes())
    federation.assert_mean(federation.site().decrypt(aggregate, like=states[0]), states, weights)
    assert aggregate.header.layout.size("clear") == sum(
        states[0][name].size for name in floats[1:] if name in _matched(exclude)
    )


def _matched(patterns):
    return {pattern.replace("[[]", "[").replace("[*]", "*").replace("[?]", "?") for pattern in patterns}


sent = st.tuples(
    st.sampled_from(sorted(ROUNDING)),
    st.lists(st.integers(0, 2**8), max_size=4).map(tuple),
    st.sampled_from(["encrypted", "clear"]),
    st.booleans(),
)
local = st.tuples(st.sampled_from(sorted(LOCAL_DTYPES)), small_shapes, st.just("local"))


@st.composite
def layouts(draw):
    """Tensors of one name or several; what is local has one."""
    left, specs = draw(st.lists(names, max_size=10, unique=True)), []
    while left:
        count = draw(st.integers(1, min(3, len(left))))
        rest = sent if count > 1 else sent | local
        specs.append(TensorSpec(tuple(left[:count]), *draw(rest)))
        del left[:count]
    return Layout(tuple(specs))


@given(layouts(), layouts())
def test_layouts_survive_json(layout, other):
    read = Layout.from_json(json.loads(json.dumps(layout.to_json())))
    assert read == layout
    assert read.fingerprint == layout.fingerprint
    assert layout.difference(read) is None
    assert (layout.difference(other) is None) == (layout == other) == (layout.fingerprint == other.fingerprint)


@st.composite
def chains(draw):
    """A degree and a chain of primes that it allows."""
    degree = draw(st.sampled_from(sorted(MAX_COEFF_MOD_BITS)))
    sizes, left = [], MAX_COEFF_MOD_BITS[degree]
    smallest = degree.bit_length() + 1
    for _ in range(draw(st.integers(1, 5))):
        if left >= smallest:
            sizes.append(draw(st.integers(smallest, min(60, left))))
            left -= sizes[-1]
    return degree, tuple(sizes)


@st.composite
def params(draw, scheme):
    """Valid params, whether or not they can work."""
    quantised = {
        "value_bits": draw(st.integers(3, 24)),
        "rounding": draw(st.sampled_from(ROUNDING_CHOICES)),
        "overflow": draw(st.sampled_from(OVERFLOW_CHOICES)),
        "error_feedback": draw(st.booleans()),
    }
    if scheme == "FLASHE":
        return FLASHEParams(**quantised)
    (degree, sizes), seeded = draw(chains()), draw(st.booleans())
    if scheme == "CKKS":
        return CKKSParams(degree, sizes, draw(st.integers(1, 120)), draw(st.booleans()), seeded)
    plain = draw(st.integers(degree.bit_length() + 1, 60).filter(lambda bits: bits not in sizes))
    return BGVParams(degree, sizes, plain, seeded=seeded, **quantised)


variants = st.sampled_from(list(VARIANTS.values())).flatmap(lambda its: st.tuples(st.just(its[0]), params(its[1])))


numbers = st.floats(1e-300, 1e300) | st.integers(1, 10**6)
patterns = st.lists(names, min_size=1, max_size=3)
aggregations = st.builds(
    lambda fewest, more, max_abs, max_weight: {
        "min_clients": fewest,
        "max_clients": min(fewest + more, 10_000),
        "max_abs": max_abs,
        "max_weight": max_weight,
    },
    st.integers(2, 10_000),
    st.integers(0, 100),
    numbers | st.dictionaries(names, numbers, min_size=1, max_size=3),
    numbers,
)


@given(
    variants,
    st.sampled_from(["all", "conv", "first-middle-last"])
    | st.fixed_dictionaries({"include": patterns}, optional={"exclude": patterns}),
    aggregations,
)
def test_configurations_survive_dict_json_and_yaml(variant, encrypt, aggregation):
    lib, params = variant
    config = Config.from_dict(
        {"he": {"lib": lib, "config": params.to_dict()}, "encrypt": encrypt, "aggregation": aggregation}
    )
    assert config.params == params
    assert Config.from_dict(config.to_dict()) == config
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert Config.from_dict(yaml.safe_load(io.StringIO(yaml.safe_dump(config.to_dict())))) == config


sites = st.text("abcXYZ019.-_", min_size=1, max_size=64).filter(lambda name: name.strip("."))
nonces = st.binary(min_size=32, max_size=32)
possible = st.builds(
    Aggregation,
    max_clients=st.integers(2, 1000),
    max_abs=st.floats(0.01, 100) | st.dictionaries(names, st.floats(0.01, 100), min_size=1, max_size=3),
    max_weight=st.floats(1e-288, 1e288),
)
measured = st.builds(
    Aggregation,
    max_clients=st.integers(2, 1000),
    precision=st.sampled_from(["auto", "previous"]),
    max_weight=st.none() | st.floats(1e-300, 2.0**40),
)


@st.composite
def headers(draw):
    aggregation = draw(possible | measured)
    kinds = ["update", "aggregate", "model", *(["calibration", "scales"] if aggregation.precision == "auto" else [])]
    kind = draw(st.sampled_from(kinds))
    contributions = draw(
        st.lists(
            st.builds(Contribution, sites, nonces),
            min_size=1,
            max_size=5 if kind in ("aggregate", "scales") else 1,
            unique_by=(lambda item: item.site, lambda item: item.nonce),
        )
    )
    if not aggregation.calibrated and draw(st.booleans()):
        sizes = draw(st.sampled_from([(60, 60), (60, 40, 40), (60, 60, 60)]))
        params = CKKSParams(8192, sizes, 36, draw(st.booleans()), draw(st.booleans()))
    else:
        lib, scheme = draw(st.sampled_from([its for its in VARIANTS.values() if its[1] != "CKKS"]))
        block = {"scheme": scheme, "value_bits": draw(st.integers(3, 24))}
        params = plan_params(lib, block, aggregation)
    return Header(
        kind=kind,
        round=draw(st.integers(0, 2**32 - 1)),
        epoch=draw(st.integers(0, 2**32 - 1)),
        key=draw(nonces).hex(),
        params=params,
        aggregation=aggregation,
        layout=draw(layouts()),
        contributions=tuple(contributions),
        base=draw(st.none() | nonces),
        calibration=draw(nonces) if aggregation.calibrated and kind in ("update", "aggregate") else None,
    )


@given(headers())
def test_headers_are_read_back(header):
    read = Header.from_head(header.head)
    assert read == header
    assert read.head == header.head
    container = Container(header.head[10], json.loads(header.head[16:-32]))
    assert container.head == header.head
    assert canonical(container.header) == header.head[16:-32]


@given(headers())
def test_frames_lie_one_behind_the_other(header):
    offset = blocks = 0
    for index, frame in enumerate(header.frames):
        assert (frame.index, frame.offset) == (index, offset)
        assert 0 < frame.nbytes <= 1 << 20
        blocks += frame.blocks
        offset += frame.nbytes + 32
    assert header.tail_offset == offset
    if header.kind == "model":
        tags = []
    else:
        bits = getattr(header.params, "data_bit_sizes", ())
        tags = [16] + [8 for size in bits for _ in range(-(-112 // (size - 1)))]
    assert header.tag_count == len(tags)
    assert header.tail_nbytes == sum(tags) + 96 * len(header.contributions) + 32
    assert header.nbytes == len(header.head) + offset + header.tail_nbytes
    assert blocks == sum(map(header.blocks, ("encrypted", "clear", "model")))
    assert header.frame_count == sum(1 for _ in header.frames)
    container = Container(header.head[10], json.loads(header.head[16:-32]))
    sizes = list(frame_sizes(container.kind, container.header, header.tail_offset))
    assert sizes == [frame.nbytes for frame in header.frames]


@given(headers(), st.data())
def test_tails_are_read_back(header, data):
    of_words = st.integers(0, 2**64 - 1)  # how large each may be, only the key tells
    count = header.tag_count
    tags = tuple(data.draw(of_words if index else st.integers(0, 2**127 - 2)) for index in range(count))
    signatures = st.binary(min_size=64, max_size=64)
    proofs = tuple(Proof(data.draw(nonces), data.draw(signatures)) for _ in header.contributions)
    packed = Tail(tags, proofs).pack(header.head, header.frame_count)
    assert len(packed) == header.tail_nbytes
    assert Tail.unpack(packed, header.head, header.frame_count, count) == Tail(tags, proofs)
    assert packed[-32:] == frame_digest(header.head[-32:], header.frame_count, packed[:-32])
    place = data.draw(st.integers(0, len(packed) - 1))
    damaged = packed[:place] + bytes([packed[place] ^ 1]) + packed[place + 1 :]
    with pytest.raises(DigestError):
        Tail.unpack(damaged, header.head, header.frame_count, count)


@given(headers())
def test_heads_follow_from_that_of_an_aggregate(header):
    """What each site signed: what a sum is one of, and its contribution alone."""
    container = Container(header.head[10], json.loads(header.head[16:-32]))
    for item, listed in zip(header.contributions, container.header["contributions"], strict=True):
        expected = Container(SUMS.get(container.kind, container.kind), container.header | {"contributions": [listed]})
        assert header.of(item).head == expected.head


@given(
    possible | measured,
    st.floats(2.0**-40, 2.0**40),
    st.lists(st.floats(-1, 1), min_size=1, max_size=20),
    st.floats(2.0**-20, 1.0),
    st.integers(2, 1000),
)
def test_fixed_point_sums_are_exact(aggregation, bound, parts, weight, sites):
    """Sums of words modulo 2**64 are sums of Python's integers, for as many sites as are planned for."""
    places, sites = fraction_bits(aggregation.to_dict()), min(sites, aggregation.max_clients)
    codec, values, found = FixedPointCodec(aggregation), np.array(parts) * (bound / weight), np.empty(len(parts))
    words = codec.encoder([values], [np.inf], [bound], weight).encode(0, 1)
    scaled = np.ldexp((values * weight / bound).clip(-1, 1), places)  # where it has a fraction, doubles have it too
    integers = [round(value) for value in scaled.tolist()]
    assert words[: len(parts)].view(np.int64).tolist() == integers
    total = words * np.uint64(sites)
    sums = [sites * integer for integer in integers]
    assert total[: len(parts)].view(np.int64).tolist() == sums
    codec.decoder([found]).decode(0, total, [bound], weight)
    np.testing.assert_array_equal(found, np.ldexp(np.array(sums, float), -places) * bound * (1 / weight))


@st.composite
def configurations(draw):
    """Where scales are measured: what is left out is planned."""
    lib, scheme = draw(st.sampled_from([its for its in VARIANTS.values() if its[1] != "CKKS"]))
    of_params = {
        "value_bits": st.integers(3, 24),
        "error_feedback": st.booleans(),
        "rounding": st.sampled_from(ROUNDING_CHOICES),
    }
    of_sums = {
        "max_clients": st.integers(2, 1000),
        "precision": st.sampled_from(["auto", "previous"]),
        "max_weight": numbers.filter(lambda number: number <= 2**40),
    }
    block, aggregation = (draw(st.fixed_dictionaries({}, optional=given)) for given in (of_params, of_sums))
    return {"he": {"lib": lib, "config": {"scheme": scheme} | block}, "aggregation": {"min_clients": 2} | aggregation}


@settings(max_examples=50)
@given(configurations())
def test_configurations_without_max_abs_survive_too(data):
    config = Config.from_dict(data)
    assert config.aggregation.precision == data["aggregation"].get("precision", "auto")
    assert config.params.overflow == "clip"
    assert config.params.value_bits >= data["he"]["config"].get("value_bits", 6)
    assert Config.from_dict(config.to_dict()) == config
    assert Config.from_dict(yaml.safe_load(io.StringIO(yaml.safe_dump(config.to_dict())))) == config
