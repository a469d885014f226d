"""Promise 3: whatever is wrong with an update, the aggregator says what, and the sum stays as it was."""

from __future__ import annotations

import errno
import io
import os
import pickle
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from container import UPDATE, Container, block_nbytes, put_word, row_offsets, tag_moduli, tag_sizes
from federation import LARGE, LATTICE, VARIANTS, Federation, federate, is_symmetric, other_keys, random_states

import secagg
from secagg import Header, Update
from secagg.errors import (
    CapacityError,
    ConfigError,
    DigestError,
    DuplicateError,
    FormatError,
    KeyMismatchError,
    LayoutError,
    MismatchError,
    QuorumError,
    RoundMismatchError,
    StateError,
)
from secagg.wire.update import FileBody

SHAPES = {"w": (1500,), "c": (5,), "b": (2, 3)}
ENCRYPT = {"exclude": ["c"]}
ROUND = 5


@dataclass(frozen=True)
class Bench:
    """Two good updates, of site-1 and site-2, and a third site that does something wrong."""

    federation: Federation
    states: list
    good: list[Update]

    @classmethod
    def of(cls, lib):
        federation = federate(lib, encrypt=ENCRYPT)
        states = random_states(3, SHAPES)
        sites = federation.sites(2)
        good = [site.encrypt(state, round=ROUND) for site, state in zip(sites, states, strict=False)]
        return cls(federation, states, good)

    @property
    def state(self):
        return self.states[2]

    @property
    def params(self):
        return self.federation.config.params.to_dict()

    def bad(self, federation=None, site="site-3", round=ROUND, state=None):
        """An update of the third site, as a federation of other ideas makes it."""
        return (federation or self.federation).site(site).encrypt(state or self.state, round=round).to_bytes()

    def edited(self, change, site="site-3"):
        """An honest update of the third site, its container changed and every digest made anew."""
        container = Container.read(self.bad(site=site))
        change(container)
        return container.to_bytes()

    def aggregator(self, added):
        aggregator = self.federation.aggregator(round=ROUND)
        for update in self.good[:added]:
            aggregator.add(update)
        return aggregator

    def finish(self, aggregator):
        """Add the good updates that are missing and hold the sum against a sum that never saw anything bad."""
        for update in self.good[len(aggregator.sites) :]:
            aggregator.add(update)
        assert aggregator.sites == ("site-1", "site-2")
        aggregate = aggregator.finish()
        untouched = self.aggregator(2).finish()
        assert Container.read(aggregate.to_bytes()).payloads == Container.read(untouched.to_bytes()).payloads
        mean = self.federation.site().decrypt(aggregate, like=self.states[0])
        self.federation.assert_mean(mean, self.states[:2])

    def assert_refused(self, blob, error, match, tmp_path, first=True):
        """Refused as the first update and as the second, from memory and from a file, and nothing is added."""
        path = tmp_path / "bad.secagg"
        path.write_bytes(blob)
        for added in (0, 1) if first else (1,):
            aggregator = self.aggregator(added)
            for submit in (add_bytes, add_file):
                with pytest.raises(error, match=match) as caught:
                    submit(aggregator, path)
                assert caught.type is error
                assert aggregator.sites == ("site-1",)[:added]
                if not added:
                    assert aggregator.layout is None
            self.finish(aggregator)


def add_bytes(aggregator, path):
    aggregator.add(Update.from_bytes(path.read_bytes()))


def add_file(aggregator, path):
    with Update.open(path) as update:
        aggregator.add(update)


@pytest.fixture(scope="module")
def bench(lib):
    return Bench.of(lib)


def set_header(*path, to):
    """Change one value of the header."""

    def change(container):
        block = container.header
        for key in path[:-1]:
            block = block[key]
        block[path[-1]] = to

    return change


def other_encoding(container):
    """Params that fit key and length, and mean other plaintexts."""
    params = container.header["params"]
    params.update({"scale_bits": 21} if "scale_bits" in params else {"rounding": "nearest"})


def later_keys(federation):
    return replace(federation, keys=secagg.generate_keys(federation.config, epoch=1))


def model(bench):
    """A global model, as a site stores it."""
    with tempfile.TemporaryDirectory() as folder:
        bench.federation.site("site-3").encrypt_model(Path(folder) / "model", bench.state, round=ROUND)
        return (Path(folder) / "model").read_bytes()


# What a header can tell: each is refused by `add`, and by `admit` before a frame was sent.

HEADERS = {
    "another key": (lambda b: b.bad(other_keys(b.federation)), KeyMismatchError, "is under key .*, expected"),
    "a later key": (
        lambda b: b.bad(later_keys(b.federation)),
        KeyMismatchError,
        "is of epoch 1 of the key, expected epoch 0",
    ),
    "another epoch": (lambda b: b.edited(set_header("epoch", to=2)), KeyMismatchError, "is of epoch 2 of the key"),
    "an earlier round": (lambda b: b.bad(round=ROUND - 1), RoundMismatchError, "is for round 4, this is round 5"),
    "a later round": (lambda b: b.bad(round=ROUND + 1), RoundMismatchError, "is for round 6, this is round 5"),
    "other params": (
        lambda b: b.bad(federate(b.federation.variant, LARGE, encrypt=ENCRYPT)),
        MismatchError,
        "has other params: poly_modulus_degree|value_bits|lane.* \\d+, expected",
    ),
    "another scheme": (
        lambda b: b.bad(federate("flashe" if b.params["scheme"] == "CKKS" else "tenseal", encrypt=ENCRYPT)),
        MismatchError,
        "has other params: scheme '.*', expected '.*'$",
    ),
    "another encoding": (lambda b: b.edited(other_encoding), MismatchError, "has other params: .*, expected"),
    "another max_abs": (lambda b: b.bad(b.federation.but(max_abs=1.5)), MismatchError, "max_abs 1.5, expected 1.0"),
    "max_abs by pattern": (
        lambda b: b.bad(b.federation.but(max_abs={"default": 1.0, "w": 1.5})),
        MismatchError,
        "aggregation.max_abs {.*}, expected 1.0: give all sites one config",
    ),
    "another max_weight": (
        lambda b: b.bad(b.federation.but(max_weight=2)),
        MismatchError,
        "max_weight 2.0, expected 1.0",
    ),
    "another max_clients": (
        lambda b: b.bad(b.federation.but(max_clients=3)),
        MismatchError,
        "max_clients 3, expected 4",
    ),
    "less encrypted": (
        lambda b: b.bad(b.federation.but(encrypt={"exclude": ["c", "b"]})),
        LayoutError,
        "another layout than the configuration makes it: .*'b' is float32.* clear, expected .*encrypted",
    ),
    "more encrypted": (
        lambda b: b.bad(b.federation.but(encrypt="all")),
        LayoutError,
        "'c' is float32.* encrypted, expected .*clear",
    ),
    "encrypted set of a misspelt name": (
        lambda b: b.bad(
            b.federation.but(encrypt={"include": ["w", "b"]}), state={"w": b.state["w"], "b": b.state["b"]}
        ),
        LayoutError,
        "does not fit the configuration: encrypt: pattern 'c' matches no tensor",
    ),
    "plaintext roles around ciphertext": (
        lambda b: b.edited(all_clear),
        LayoutError,
        "another layout than the configuration makes it",
    ),
    "a model": (model, MismatchError, "is of kind 'model'; kind 'update' is needed here"),
    "an aggregate": (
        lambda b: b.federation.sum(b.states[:2]).to_bytes(),
        MismatchError,
        "is of kind 'aggregate'; kind 'update' is",
    ),
}


def all_clear(container):
    """Plaintext, well wrapped: roles say clear, the clear section holds the values, digests fit."""
    values = sum(np.prod(shape, dtype=int) for _, _, shape, *_ in container.header["layout"])
    for spec in container.header["layout"]:
        spec[3] = "clear"
    words = np.zeros(-(-values // 4096) * 4096, "<i8")
    words[:values] = np.rint(np.linspace(-1, 1, values) * 2.0**60)
    size = block_nbytes(container.header["params"])  # the weight stays encrypted, and takes one block
    container.payloads = [container.payloads[0][:size], words.tobytes()]


@pytest.mark.parametrize(("make", "error", "match"), HEADERS.values(), ids=HEADERS)
def test_a_header_that_does_not_fit(bench, tmp_path, make, error, match):
    blob = make(bench)
    bench.assert_refused(blob, error, match, tmp_path)
    with pytest.raises(error, match=match) as caught:
        bench.aggregator(0).admit(Header.from_head(Container.read(blob).head))
    assert caught.type is error


# What only shows beside an update that was added before.

LAYOUTS = {
    "a tensor less": lambda state: {name: value for name, value in state.items() if name != "b"},
    "a tensor more": lambda state: state | {"more": np.ones(1)},
    "an integer more": lambda state: state | {"steps": np.int64(1)},
    "another name": lambda state: {"v" if name == "w" else name: value for name, value in state.items()},
    "another order": lambda state: dict(reversed(state.items())),
    "another shape": lambda state: state | {"b": state["b"].T.copy()},
    "flat": lambda state: state | {"b": state["b"].reshape(-1)},
    "another size": lambda state: state | {"w": state["w"][1:]},
    "another dtype": lambda state: state | {"w": state["w"].astype(np.float64)},
}


@pytest.mark.parametrize("change", LAYOUTS.values(), ids=LAYOUTS)
def test_another_layout(bench, tmp_path, change):
    blob = bench.bad(state=change(bench.state))
    bench.assert_refused(blob, LayoutError, "has another layout: .*expected", tmp_path, first=False)
    given = bench.federation.aggregator(ROUND, layout=bench.good[0].header.layout)
    with pytest.raises(LayoutError, match="has another layout"):
        given.add(Update.from_bytes(blob))
    with pytest.raises(LayoutError, match="has another layout"):
        given.admit(Header.from_head(Container.read(blob).head))
    bench.finish(given)


def test_a_layout_that_a_pattern_of_max_abs_does_not_know(bench):
    """The site would not have sent it; the server does not rely on that."""
    federation = bench.federation.but(max_abs={"default": 1.0, "b": 1.0})
    container = Container.read(bench.bad(federation))
    container.header["layout"][2][0] = ["bb"]
    with pytest.raises(
        LayoutError, match="does not fit the configuration: aggregation.max_abs: pattern 'b' matches no"
    ):
        federation.aggregator(ROUND).add(Update.from_bytes(container.to_bytes()))


def test_a_misspelt_layer_that_a_pattern_knows(bench):
    """`encrypt` in the words of the other model is refused at the site, before anything is sent."""
    with pytest.raises(secagg.errors.ConfigError, match="pattern 'c' matches no tensor"):
        bench.bad(state={"w": np.ones(3), "cc": np.ones(5)})


def test_another_base(bench, tmp_path):
    """The first update says which, or the server does; none is one, too."""
    base = bytes(range(32))
    based = bench.federation.site("site-3").encrypt(bench.state, round=ROUND, base=base)
    match = "site-3 names a global model that it began from, and the sum of round 5 names none: let all sites give"
    bench.assert_refused(based.to_bytes(), MismatchError, match, tmp_path, first=False)
    given = secagg.Aggregator(bench.federation.config, bench.federation.keys.server, ROUND, base=base)
    for update in bench.good:
        for attempt in (given.add, lambda update: given.admit(update.header)):
            with pytest.raises(
                MismatchError,
                match="names no global model .* and the sum of round 5 names one: let",
            ):
                attempt(update)
    given.add(based)
    assert given.sites == ("site-3",)


DUPLICATES = {
    "the same update": (lambda b: b.good[0].to_bytes(), "site site-1 contributes twice"),
    "another update of the site": (lambda b: b.bad(site="site-1"), "site site-1 contributes twice"),
    "the nonce of another site": (
        lambda b: b.edited(set_header("contributions", to=[["site-3", b.good[0].header.contributions[0].nonce.hex()]])),
        "nonce [0-9a-f]{64} contributes twice",
    ),
}


@pytest.mark.parametrize(("make", "match"), DUPLICATES.values(), ids=DUPLICATES)
def test_a_duplicate(bench, tmp_path, make, match):
    blob = make(bench)
    bench.assert_refused(blob, DuplicateError, match, tmp_path, first=False)
    with pytest.raises(DuplicateError, match=match):
        bench.aggregator(1).admit(Header.from_head(Container.read(blob).head))


# What is no update at all.


def native_ciphertext(bench):
    federation = bench.federation
    backend = federation.backend(federation.config.params, federation.keys.client)
    encoder = federation.codec.encoder([np.zeros(9)], [(9,)], [1.0], 1.0)
    return backend.cipher(ROUND, bench.good[0].header.contributions).encrypt(0, encoder.encode(0, 1)).tobytes()


def numpy_file(bench):
    stream = io.BytesIO()
    np.savez(stream, **bench.state)
    return stream.getvalue()


STRANGERS = {
    "nothing": (lambda b: b"", "truncated: 0 bytes"),
    "a state dict, pickled": (lambda b: pickle.dumps(b.state), "magic"),
    "a state dict, as NumPy's file": (numpy_file, "magic"),
    "raw floats": (lambda b: b.state["w"].tobytes(), "magic"),
    "bare words of a ciphertext": (native_ciphertext, "magic"),
    "text": (lambda b: b'{"w": [1.0]}' * 100, "magic"),
    "zeros": (lambda b: bytes(100_000), "magic"),
    "line ends rewritten": (lambda b: b.bad().replace(b"\r\n", b"\n"), "magic"),
    "two updates in a row": (lambda b: b.bad() + b.bad(), "trailing bytes"),
    "version 1": (lambda b: b.edited(lambda c: setattr(c, "version", 1)), "version 1; this release reads version 4"),
    "version 2": (lambda b: b.edited(lambda c: setattr(c, "version", 2)), "version 2; this release reads version 4"),
    "version 3": (lambda b: b.edited(lambda c: setattr(c, "version", 3)), "version 3; this release reads version 4"),
    "version 5": (lambda b: b.edited(lambda c: setattr(c, "version", 5)), "version 5"),
    "version 0": (lambda b: b.edited(lambda c: setattr(c, "version", 0)), "version 0"),
}


@pytest.mark.parametrize(("make", "match"), STRANGERS.values(), ids=STRANGERS)
def test_what_is_no_update(bench, tmp_path, make, match):
    bench.assert_refused(make(bench), FormatError, match, tmp_path)


@pytest.mark.parametrize("role", ["client", "server"])
def test_a_key_is_no_update(bench, tmp_path, role):
    getattr(bench.federation.keys, role).save(tmp_path / "some.key")
    blob = (tmp_path / "some.key").read_bytes()
    bench.assert_refused(blob, FormatError, f"this is a {role}-key, not an update", tmp_path)


# Plaintext and damage in the frames. Words below their moduli cannot be told from ciphertext: what can be told is
# that they are not below, that there are too few or too many, and, of whole ciphertexts, that a second polynomial is
# zero.


def replace_frame(index, payload):
    def change(container):
        container.payloads[index] = payload(container.payloads[index])

    return change


def tail_of(change):
    """Other bytes in place of tags and proofs, which `change` gets apart, and the tail's digest made anew."""

    def edit(container):
        tail, size = container.make_tail(), sum(tag_sizes(container.kind, container.header["params"]))
        container.tail = change(tail[:size], tail[size:])

    return edit


TAILS = {
    "no tail": (lambda tags, proof: b"", FormatError, "truncated"),
    "no proof": (lambda tags, proof: tags, FormatError, "truncated"),
    "half a proof": (lambda tags, proof: tags + proof[:32], FormatError, "truncated"),
    "a proof too many": (lambda tags, proof: tags + proof + proof, FormatError, "trailing bytes"),
    "a tag too many": (lambda tags, proof: tags + bytes(8) + proof, FormatError, "trailing bytes"),
    "a tag too few": (lambda tags, proof: tags[8:] + proof, FormatError, "truncated"),
    "a tag that is the modulus": (
        lambda tags, proof: (2**127 - 1).to_bytes(16, "little") + tags[16:] + proof,
        FormatError,
        r"not below 2\*\*127 - 1",
    ),
    "a tag of ones": (lambda tags, proof: b"\xff" * 16 + tags[16:] + proof, FormatError, r"not below 2\*\*127 - 1"),
    "another body": (lambda tags, proof: tags + bytes(32) + proof[32:], DigestError, "the body is damaged"),
    "a flipped bit of the body": (
        lambda tags, proof: tags + proof[:31] + bytes([proof[31] ^ 128]) + proof[32:],
        DigestError,
        "the body is damaged",
    ),
}


@pytest.mark.parametrize(("change", "error", "match"), TAILS.values(), ids=TAILS)
def test_a_tail_that_does_not_fit(bench, change, error, match):
    blob = bench.edited(tail_of(change))
    for added in (0, 1):
        aggregator = bench.aggregator(added)
        with pytest.raises(error, match=match):
            aggregator.add(Update.from_bytes(blob))
        bench.finish(aggregator)


def test_a_tag_that_is_not_below_its_modulus(bench, tmp_path):
    """A number has one form, whatever the server would make of it; each place is tried, with every digest right."""
    moduli = tag_moduli(bench.federation.keys.server._header())
    for index, modulus in list(enumerate(moduli))[1:]:
        for tag in (modulus, modulus + 1, 2**64 - 1):
            blob = bench.edited(lambda c, at=index, tag=tag: c.tags.__setitem__(at, tag))
            match = f"tag {index} of the tail is not below its modulus {modulus}"
            bench.assert_refused(blob, FormatError, match, tmp_path)


def test_another_tag(bench):
    """No digest that the server reads covers tags: it takes any below their moduli, and sites refuse the sum."""
    for index, modulus in enumerate(tag_moduli(bench.federation.keys.server._header())):

        def other(container, index=index, modulus=modulus):
            container.tags[index] = (container.tags[index] + 1) % modulus

        aggregator = bench.aggregator(2)
        aggregator.add(Update.from_bytes(bench.edited(other)))
        with pytest.raises(secagg.errors.DecryptionError):
            bench.federation.site().decrypt(aggregator.finish())


PAYLOADS = {
    "raw float32 in place of ciphertext": (
        replace_frame(0, lambda p: np.linspace(-1, 1, 1507, dtype="<f4").tobytes()),
        "truncated",
    ),
    "raw float64 in place of ciphertext": (replace_frame(0, lambda p: np.linspace(-1, 1, 700).tobytes()), "truncated"),
    "more plaintext than ciphertext": (replace_frame(0, lambda p: bytes(4 * len(p))), "trailing bytes"),
    "a frame less": (lambda c: c.payloads.pop(), "truncated"),
    "a frame more": (lambda c: c.payloads.append(b"x"), "trailing bytes"),
    "an empty frame": (replace_frame(1, lambda p: b""), "truncated"),
    "half the blocks": (replace_frame(0, lambda p: p[: len(p) // 2]), "truncated"),
    "a block more": (lambda c: replace_frame(0, lambda p: p + p[: block_nbytes(c.header["params"])])(c), "trailing"),
    "a byte less": (replace_frame(0, lambda p: p[:-1]), "truncated"),
    "a byte more": (replace_frame(0, lambda p: p + b"\0"), "trailing bytes"),
}


@pytest.mark.parametrize(("change", "match"), PAYLOADS.values(), ids=PAYLOADS)
def test_frames_of_another_length(bench, tmp_path, change, match):
    """Every digest fits."""
    bench.assert_refused(bench.edited(change), FormatError, match, tmp_path)


@pytest.fixture(scope="module", params=LATTICE)
def lattice(request):
    """The bench of every library and scheme whose words are below primes."""
    return Bench.of(request.param)


def large_word(bench, block, row, index, above=0):
    """A word that is its prime, or above it, and which word of the first frame it is."""
    rows, degree = row_offsets(bench.params), bench.params["poly_modulus_degree"]
    blocks = len(Container.read(bench.good[0].to_bytes()).payloads[0]) // block_nbytes(bench.params)
    block, row = range(blocks)[block], range(len(rows))[row]
    start, bits = rows[row]
    primes = bench.federation.keys.server.primes
    data = primes[: len(bench.federation.config.params.data_bit_sizes)]

    def change(container):
        payload, size = container.payloads[0], block_nbytes(bench.params)
        part = payload[block * size : (block + 1) * size]
        part = put_word(part, start, bits, range(degree)[index], data[row % len(data)] + above)
        container.payloads[0] = payload[: block * size] + part + payload[(block + 1) * size :]

    return change, (block * len(rows) + row) * degree + range(degree)[index]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    ("block", "row", "index", "above"),
    [(0, 0, 0, 0), (0, 0, 77, 5), (0, 0, -1, 0), (0, -1, 0, 0), (-1, -1, -1, 0)],
    ids=["the first word", "a word above its prime", "the last of a row", "the last row", "the last word"],
)
def test_a_word_that_is_not_below_its_prime(lattice, tmp_path, block, row, index, above):
    change, place = large_word(lattice, block, row, index, above)
    lattice.assert_refused(lattice.edited(change), FormatError, f"word {place} of a frame is not below", tmp_path)


@pytest.mark.usefixtures("kernels")
def test_bytes_that_are_no_words(lattice, tmp_path):
    for payload, match in (
        (lambda p: b"\xff" * len(p), "word 0 of a frame is not below its modulus"),
        (
            lambda p: np.full(len(p) // 4, np.nan, "<f4").tobytes()[: len(p) - 4] + b"\xff" * 4,
            "is not below its modulus",
        ),
    ):
        lattice.assert_refused(lattice.edited(replace_frame(0, payload)), FormatError, match, tmp_path)


@pytest.mark.usefixtures("kernels")
def test_an_encoded_plaintext(lattice, tmp_path):
    """SEAL's "transparent" ciphertext, whose c0 anybody reads. A seeded update has no c1 that could be zero."""
    half = block_nbytes(lattice.params) // 2
    for change in (replace_frame(0, lambda p: p[:-half] + bytes(half)), replace_frame(0, lambda p: bytes(len(p)))):
        if lattice.params["seeded"]:
            aggregator = lattice.aggregator(1)
            aggregator.add(Update.from_bytes(lattice.edited(change)))
            assert aggregator.sites == ("site-1", "site-3")
        else:
            lattice.assert_refused(lattice.edited(change), FormatError, "plaintext where ciphertext", tmp_path)


def test_any_word_is_one_of_flashe():
    """Modulo 2**64 nothing can be told of words; the sum then fails at the sites (test_vectors.py)."""
    bench = Bench.of("flashe")
    aggregator = bench.aggregator(1)
    aggregator.add(Update.from_bytes(bench.edited(replace_frame(0, lambda p: b"\xff" * len(p)))))
    with pytest.raises(secagg.errors.DecryptionError):
        bench.federation.site().decrypt(aggregator.finish())


# Seeds in place of second polynomials.


SYMMETRIC = [variant for variant in LATTICE if is_symmetric(VARIANTS[variant][0])]


def other_kind(federation):
    """The same keys, and updates of the other kind."""
    params = federation.config.params
    return replace(federation, config=replace(federation.config, params=replace(params, seeded=not params.seeded)))


@pytest.mark.parametrize("variant", [variant for variant in SYMMETRIC if VARIANTS[variant][1] == "CKKS"])
def test_whole_ciphertexts_among_half_ones(variant, tmp_path):
    """All sites of a federation send the same kind. (Of BGV, what is planned for seeds has no room for others.)"""
    bench = Bench.of(variant)
    blob = bench.bad(other_kind(bench.federation))
    bench.assert_refused(
        blob, MismatchError, "seeded False, expected True; pyfhel knows no seeds: .* set `seeded: false`", tmp_path
    )


@pytest.mark.parametrize("variant", [variant for variant in LATTICE if variant not in SYMMETRIC])
def test_seeds_need_symmetric_encryption(variant):
    with pytest.raises(ConfigError, match="encrypts under the public key, .*: set seeded: false"):
        other_kind(federate(variant)).site()


def test_a_body_of_the_other_kind(lattice, tmp_path):
    """c0 alone under a header of whole ciphertexts, and whole ciphertexts under a seeded header."""
    size = block_nbytes(lattice.params)
    if lattice.params["seeded"]:
        change, match = replace_frame(0, lambda p: p * 2), "trailing bytes"
    else:
        change, match = replace_frame(0, lambda p: split(p, size)), "truncated"
    lattice.assert_refused(lattice.edited(change), FormatError, match, tmp_path)


def split(payload, size):
    """The first half of each block."""
    return b"".join(payload[start : start + size // 2] for start in range(0, len(payload), size))


def test_truncation_at_every_boundary(bench, tmp_path):
    blob = bench.bad()
    container = Container.read(blob)
    ends = [0, 8, 16, len(container.head) - 32, len(container.head)]
    for payload in container.payloads:
        ends += [ends[-1] + len(payload), ends[-1] + len(payload) + 32]
    for size in (*tag_sizes(container.kind, container.header["params"]), 32, 64, 32):  # body digest, signature, digest
        ends.append(ends[-1] + size)
    assert ends[-1] == len(blob)
    aggregator = bench.aggregator(1)
    path = tmp_path / "short.secagg"
    for size in sorted({size for end in ends for size in (end - 1, end, end + 1) if 0 <= size < len(blob)}):
        path.write_bytes(blob[:size])
        for submit in (add_bytes, add_file):
            with pytest.raises(FormatError, match="truncated"):
                submit(aggregator, path)
    bench.finish(aggregator)


@pytest.mark.parametrize("more", [b"\0", b"\r\n", bytes(32), bytes(10_000)], ids=len)
def test_trailing_bytes(bench, tmp_path, more):
    bench.assert_refused(bench.bad() + more, FormatError, "trailing bytes", tmp_path)


def test_one_flipped_bit_in_every_region(bench, tmp_path):
    """Every bit of the head, bits of every frame and digest, and every byte of the tail."""
    blob = bench.bad()
    container = Container.read(blob)
    head = len(container.head)
    first = head + len(container.payloads[0])
    frames = [
        *range(head, first, 1201),
        first - 1,
        *range(first, first + 32),
        first + 32,
        *range(len(blob) - 144 - 33, len(blob)),
    ]
    aggregator = bench.aggregator(1)
    for place in (*range(head), *frames):
        for bit in range(8) if place < head else (place % 8,):
            damaged = bytearray(blob)
            damaged[place] ^= 1 << bit
            with pytest.raises(FormatError) as caught:
                aggregator.add(Update.from_bytes(bytes(damaged)))
            if place >= 16:  # the preamble is read before there is a digest
                assert caught.type is DigestError
    assert aggregator.sites == ("site-1",)
    bench.finish(aggregator)


def test_frames_in_another_place(bench, tmp_path):
    """A digest binds a frame to its update and its place."""
    federation = bench.federation
    values = 2 * federation.frame_blocks * federation.codec.block_values - federation.head_values(2)
    state = {"w": np.linspace(-1, 1, values, dtype=np.float32), "c": np.ones(5)}  # two full frames
    one, other = (federation.site("site-3").encrypt(state, round=ROUND).to_bytes() for _ in range(2))
    container = Container.read(one)
    head, size = len(container.head), len(container.payloads[0]) + 32
    frames = [blob[start : start + size] for blob in (one, other) for start in (head, head + size)]
    assert len(container.payloads) == 3
    for first, second in ((1, 0), (0, 0), (2, 1), (0, 3)):
        blob = one[:head] + frames[first] + frames[second] + one[head + 2 * size :]
        with pytest.raises(DigestError, match="frame [01] is damaged"):
            federation.aggregator(ROUND).add(Update.from_bytes(blob))


# States of the aggregator.


def test_too_few_sites(bench):
    aggregator = bench.aggregator(1)
    with pytest.raises(QuorumError, match="round 5 has 1 updates, min_clients is 2: wait for more sites"):
        aggregator.finish()
    bench.finish(aggregator)
    with pytest.raises(QuorumError, match="0 updates"):
        bench.aggregator(0).finish()


def test_after_the_end(bench):
    aggregator = bench.aggregator(2)
    aggregate = aggregator.finish()
    blob = aggregate.to_bytes()
    third = Update.from_bytes(bench.bad())
    for attempt in (lambda: aggregator.add(third), lambda: aggregator.admit(third.header), aggregator.finish):
        with pytest.raises(StateError, match="round 5 is finished"):
            attempt()
    assert aggregate.to_bytes() == blob


def test_more_sites_than_planned(bench):
    """The sum holds max_clients; one more could wrap it."""
    federation = bench.federation
    states = random_states(4, SHAPES, seed=3)
    aggregator = federation.aggregator(ROUND)
    for site, state in zip(federation.sites(4), states, strict=True):
        aggregator.add(site.encrypt(state, round=ROUND))
    fifth = federation.site("site-5").encrypt(bench.state, round=ROUND)
    for attempt in (lambda: aggregator.add(fifth), lambda: aggregator.admit(fifth.header)):
        with pytest.raises(CapacityError, match="max_clients 4 updates are in the sum already"):
            attempt()
    assert len(aggregator.sites) == 4
    federation.assert_mean(federation.site().decrypt(aggregator.finish()), states)


def test_each_party_has_its_own_min_clients(bench):
    """It is no part of the header: a site that demands more of an aggregate can still contribute."""
    strict = bench.federation.but(min_clients=4)
    aggregator = bench.aggregator(1)
    aggregator.add(strict.site("site-2").encrypt(bench.states[1], round=ROUND))
    bench.federation.assert_mean(bench.federation.site().decrypt(aggregator.finish()), bench.states[:2])


@pytest.mark.parametrize("round", [-1, 2**32, 1.0, "0", None, True], ids=repr)
def test_a_round_that_cannot_be(bench, round):
    with pytest.raises(ConfigError, match="round is"):
        bench.federation.aggregator(round)
    with pytest.raises(ConfigError, match="round is"):
        bench.federation.site().encrypt(bench.state, round=round)


def test_admit_takes_the_header_alone(bench):
    aggregator = bench.aggregator(1)
    head = next(bench.good[1].chunks())
    header = Header.from_head(head)
    aggregator.admit(header)
    assert (header.site, header.nbytes) == ("site-2", bench.good[1].nbytes)
    assert aggregator.sites == ("site-1",)  # admitted is not added
    for wrong in (head[:-1], head + b"\0", bench.good[1].to_bytes(), b"", head[:16]):
        with pytest.raises(FormatError):
            Header.from_head(wrong)
    bench.finish(aggregator)


# Failures between verification and addition.


class Failing(FileBody):
    """A file that does something at its n-th read: tail and frames are read, and then the frames again."""

    def __init__(self, update_file, head, reads, act):
        super().__init__(update_file, head)
        self._reads, self._act = reads, act

    def read(self, offset, nbytes):
        self._reads -= 1
        if self._reads < 0:
            self._act()
        return super().read(offset, nbytes)


def fail():
    raise OSError(errno.EIO, "Input/output error")


def cut(path):
    def act():
        os.truncate(path, 5000)

    return act


def rot(path):
    def act():
        with open(path, "r+b") as file:
            file.seek(-144 - 100, os.SEEK_END)  # in the last frame
            file.write(b"rot")

    return act


ACTS = {"input/output error": (lambda path: fail, OSError), "cut": (cut, FormatError), "rot": (rot, DigestError)}


def failing_update(bench, path, reads, act):
    path.write_bytes(bench.bad())
    os.utime(path, (0, 0))  # clocks of file systems tick every few milliseconds: a change is seen by the next tick
    header = Update.from_bytes(path.read_bytes()).header
    return Update(header, Failing(path.open("rb", buffering=0), len(header.head), reads, act(path)))


@pytest.mark.parametrize(("act", "error"), ACTS.values(), ids=ACTS)
@pytest.mark.parametrize("reads", [0, 1, 2])
def test_a_failure_while_verifying(bench, tmp_path, act, error, reads):
    """Nothing was added: the round goes on."""
    aggregator = bench.aggregator(1)
    with failing_update(bench, tmp_path / "update.secagg", reads, act) as update, pytest.raises(error):
        aggregator.add(update)
    bench.finish(aggregator)


@pytest.mark.parametrize(("act", "error"), ACTS.values(), ids=ACTS)
@pytest.mark.parametrize("reads", [3, 4])
def test_a_failure_while_adding(bench, tmp_path, act, error, reads):
    """Half of a verified update may be in the sum: the aggregator closes rather than give a wrong sum."""
    aggregator = bench.aggregator(2)
    with (
        failing_update(bench, tmp_path / "update.secagg", reads, act) as update,
        pytest.raises(FormatError if error is DigestError else error),  # digests are checked once, then the file's time
    ):
        aggregator.add(update)
    assert aggregator.sites == ("site-1", "site-2")
    for attempt in (
        aggregator.finish,
        lambda: aggregator.add(Update.from_bytes(bench.bad())),
        lambda: aggregator.admit(bench.good[0].header),
    ):
        with pytest.raises(StateError, match="failed half-way; the sum is lost, run the round again"):
            attempt()


def test_kind_is_in_the_preamble(bench):
    """An aggregate that calls itself an update lists too many contributions."""
    container = Container.read(bench.federation.sum(bench.states[:2]).to_bytes())
    container.kind = UPDATE
    with pytest.raises(FormatError, match="an update has one contribution, this one lists 2"):
        Update.from_bytes(container.to_bytes())
