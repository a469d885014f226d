"""Tags, against Python's integers, HMAC and AES alone: what they cover, that they add up, and what they hang on."""

from __future__ import annotations

import hashlib
import hmac
import importlib
import pickle
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from federation import LARGE, SMALL, VARIANTS, federate, make_keys, random_states
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from plain_word_tags import counts_of, elements

import secagg
import secagg_ext
from secagg.backends.registry import load_backend
from secagg.scheme.params import LatticeParams
from secagg.scheme.ring import CLEAR_RING, Ring
from secagg.trust.failures import MAX_FAILURES
from secagg.trust.tags import Authenticator, tag_moduli
from secagg.wire.header import Contribution, Header
from secagg.wire.layout import Layout
from secagg.wire.tail import TAG_MODULUS, WORD_TAG_NBYTES, add_tags, tail_nbytes

P = 2**127 - 1
TOP = 2**64 - 1

words = st.integers(0, TOP) | st.sampled_from([0, 1, 2**32, 2**63 - 1, 2**63, TOP])
#: What a stream is cut into; kernels reduce every 128 or 1024 words.
streams = st.lists(st.lists(words, max_size=5) | st.integers(0, 1100).map(lambda n: [TOP] * n), max_size=4)


def hkdf(secret: bytes, *fields: bytes) -> bytes:
    """RFC 5869 with SHA-256, no salt, 32 bytes."""
    key = hmac.digest(bytes(32), secret, hashlib.sha256)
    info = b"".join(len(field).to_bytes(4, "little") + field for field in fields)
    return hmac.digest(key, info + b"\1", hashlib.sha256)


def subkey(key: secagg.ClientKey, header: Header, purpose: bytes, *fields: bytes) -> bytes:
    common = replace(header, kind="update", contributions=()).head[-32:]
    place = (bytes.fromhex(key.fingerprint), key.server.epoch.to_bytes(8, "little"), common)
    return hkdf(key._root, purpose, *place, *fields)


def bodies_of(header: Header) -> list[bytes]:
    """Digests of the bodies of all contributions, which follow from them here."""
    return [hashlib.sha256(item.site.encode() + item.nonce).digest() for item in header.contributions]


def numbers_of(key: secagg.ClientKey, header: Header, bodies: list[bytes] | None = None) -> tuple[int, int]:
    """α of integers, and the sum of the pads r of all contributions."""
    updates = zip(header.contributions, bodies or bodies_of(header), strict=True)

    def number(purpose: bytes, *fields: bytes) -> int:
        return int.from_bytes(subkey(key, header, purpose, *fields), "little") % P

    alpha = number(b"secagg mac point v1")
    pads = [number(b"secagg mac pad v1", item.site.encode(), item.nonce, body) for item, body in updates]
    return alpha, sum(pads) % P


def word_tags_by_hand(key: secagg.ClientKey, header: Header, words: list[int], bodies: list[bytes]) -> list[int]:
    """Σ_B Σ_j α_B·β_j·c_{B,j} + r of each prime and element, over all ciphertext words."""
    primes = key.server.primes[:-1] or key.server.primes
    places = [
        (prime, index.to_bytes(4, "little") + element.to_bytes(4, "little"))
        for index, (prime, count) in enumerate(zip(primes, counts_of(primes), strict=True))
        for element in range(count)
    ]
    keys = [subkey(key, header, b"secagg word tag v1", place) for _, place in places]
    found = elements(words, primes, key.params.poly_modulus_degree, keys)
    for number, (prime, place) in enumerate(places):
        for item, body in zip(header.contributions, bodies, strict=True):
            pad = subkey(key, header, b"secagg word tag pad v1", item.site.encode(), item.nonce, body, place)
            found[number] = (found[number] + int.from_bytes(pad, "little")) % prime
    return found


def tag_by_hand(key: secagg.ClientKey, header: Header, numbers: list[int], bodies: list[bytes] | None = None) -> int:
    """Σ αʲ·Mⱼ + r over signed integers, j counted from the last, which has 1."""
    alpha, pads = numbers_of(key, header, bodies)
    return (sum(pow(alpha, j, P) * number for j, number in enumerate(reversed(numbers), 1)) + pads) % P


def signed(word: int) -> int:
    return word - (word >> 63 << 64)


def header_of(federation, *contributions: tuple[str, bytes], **changes) -> Header:
    key = federation.keys.server
    fields = {
        "kind": "update" if len(contributions) == 1 else "aggregate",
        "round": 3,
        "epoch": key.epoch,
        "key": key.fingerprint,
        "params": federation.config.params,
        "aggregation": federation.config.aggregation,
        "layout": Layout.of({"w": np.zeros(5, np.float32)}, federation.config),
        "contributions": tuple(Contribution(*item) for item in contributions),
    }
    return Header(**fields | changes)


def tag_of(federation, header: Header, unsigned: list[list[int]], clear: list[list[int]] = ()) -> int:
    authenticator = Authenticator(federation.keys.client, header)
    for pieces, is_signed in ((unsigned, False), (clear, True)):
        for piece in pieces:
            authenticator.add_integers(np.array(piece, np.uint64), signed=is_signed)
    (tag,) = authenticator.tags(bodies_of(header))
    return tag


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(streams, streams)
@example([], [])
@example([[0]], [])
@example([[TOP] * 1025], [[2**63]])
@pytest.mark.usefixtures("kernels")
def test_any_words(encrypted, clear):
    federation = federate("flashe")
    header = header_of(federation, ("site-1", bytes(range(32))))
    numbers = [word for piece in encrypted for word in piece] + [signed(word) for piece in clear for word in piece]
    assert tag_of(federation, header, encrypted, clear) == tag_by_hand(federation.keys.client, header, numbers)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.data(), st.integers(2, 5), st.integers(0, 20), st.integers(0, 20))
@pytest.mark.usefixtures("kernels")
def test_tags_of_words_add_up_to_that_of_their_sum(data, sites, encrypted, clear):
    """As long as sums do not wrap, which the codecs prove of theirs."""
    federation = federate("flashe")
    items = [(f"site-{number}", bytes([number]) * 32) for number in range(sites)]
    rows = st.lists(st.integers(0, TOP // sites), min_size=encrypted, max_size=encrypted)
    signed_rows = st.lists(st.integers(-(2**63) // sites + 1, 2**63 // sites - 1), min_size=clear, max_size=clear)
    above, below = (data.draw(st.lists(one, min_size=sites, max_size=sites)) for one in (rows, signed_rows))
    tags = (0,)
    for item, row, signed_row in zip(items, above, below, strict=True):
        tag = tag_of(federation, header_of(federation, item), [row], [[number & TOP for number in signed_row]])
        tags = add_tags(tags, (tag,), (P,))
    total = [sum(column) for column in zip(*above, strict=True)]
    signed_total = [sum(column) & TOP for column in zip(*below, strict=True)]
    assert tags == (tag_of(federation, header_of(federation, *items), [total], [signed_total]),)


@pytest.mark.parametrize("size", [0, 1, 2, 127, 128, 129, 1023, 1024, 1025, 4096, 4097])
@pytest.mark.parametrize("fill", [0, 1, TOP, 2**63], ids=["zeros", "ones", "largest", "smallest"])
@pytest.mark.usefixtures("kernels")
def test_sizes(size, fill):
    federation = federate("flashe")
    header = header_of(federation, ("site-1", bytes(32)))
    key = federation.keys.client
    assert tag_of(federation, header, [[fill] * size]) == tag_by_hand(key, header, [fill] * size)
    assert tag_of(federation, header, [], [[fill] * size]) == tag_by_hand(key, header, [signed(fill)] * size)


def test_zeros_count():
    """Words have places: zeros before others change nothing but the length, which header and layout fix."""
    federation = federate("flashe")
    header = header_of(federation, ("site-1", bytes(32)))
    assert tag_of(federation, header, [[0, 5]]) == tag_of(federation, header, [[5]])
    assert tag_of(federation, header, [[5, 0]]) != tag_of(federation, header, [[5]])


# Of real updates.

STATES = [
    {"w": np.float32([0.5, -0.5, 1.0]), "c": np.float32([-1.0, -0.25, 0.0, 1.0, -(2.0**-20)])},
    {"w": np.float32([-1.0, -1.0, 0.0]), "c": np.float32([-1.0, -0.25, 0.0, 1.0, -(2.0**-20)])},
    {"w": np.float32([1.0, -1.0, 0.25]), "c": np.float32([-1.0, 0.75, 0.0, -1.0, 2.0**-20])},
]
WEIGHTS = [1.0, 0.5, 0.125]


def numbers_and_words(federation, update) -> tuple[list[int], list[int]]:
    """What the tag of integers is of, clear words with a sign, and all ciphertext words of a lattice scheme."""
    params = federation.config.params
    header = update.header
    cipher = load_backend(federation.config.lib)(params, federation.keys.client).cipher(
        header.round, header.contributions
    )
    ring = Ring.of_update(params, federation.keys.server.primes)
    numbers, words = [], []
    for frame, payload in update.frames():
        if frame.section == "clear":
            numbers += map(signed, CLEAR_RING.from_bytes(payload).tolist())
        elif isinstance(params, LatticeParams):
            words += ring.from_bytes(payload).tolist()
        else:
            numbers += cipher.decrypt(frame.first_block, ring.from_bytes(payload)).tolist()
    return numbers, words


def all_by_hand(key, update, numbers, words) -> tuple[int, ...]:
    """The tags of an update or aggregate, whose proofs name the bodies."""
    bodies = [proof.body for proof in update.tail.proofs]
    of_integers = tag_by_hand(key, update.header, numbers, bodies)
    return of_integers, *(word_tags_by_hand(key, update.header, words, bodies) if words else ())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("encrypt", ["all", {"exclude": ["c"]}], ids=["all", "partly"])
@pytest.mark.usefixtures("kernels")
def test_tags_of_updates(variant, encrypt):
    federation = federate(variant, encrypt=encrypt)
    key, sites = federation.keys.client, federation.sites(3)
    updates = [site.encrypt(state, weight, 7) for site, state, weight in zip(sites, STATES, WEIGHTS, strict=True)]
    aggregator = federation.aggregator(7)
    for update in updates:
        aggregator.add(update)
    aggregate = aggregator.finish()
    lattice, moduli = isinstance(key.params, LatticeParams), tag_moduli(key.server)
    numbers, words = zip(*(numbers_and_words(federation, update) for update in updates), strict=True)
    assert all(bool(its) == lattice for its in words)
    assert all(bool(its) == (not lattice or encrypt != "all") for its in numbers)
    if encrypt != "all":
        assert min(numbers[0]) < 0  # clear words have signs
        assert len(numbers[0]) % 4096 == 0
    for update, its, of_lattice in zip(updates, numbers, words, strict=True):
        assert update.tail.tags == all_by_hand(key, update, its, of_lattice)
    total = [sum(column) for column in zip(*numbers, strict=True)]
    summed, of_lattice = numbers_and_words(federation, aggregate)
    assert summed == total  # nothing has wrapped
    assert aggregate.tail.tags == all_by_hand(key, aggregate, total, of_lattice)
    columns = zip(*(update.tail.tags for update in updates), strict=True)
    assert aggregate.tail.tags == tuple(sum(tags) % q for tags, q in zip(columns, moduli, strict=True))
    federation.assert_mean(sites[0].decrypt(aggregate), STATES, WEIGHTS)


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_kernel_verifies_what_the_other_made(variant, monkeypatch):
    """A site without a compiler reads the same sums."""
    federation = federate(variant, encrypt={"exclude": ["c"]})
    aggregate = federation.sum(STATES, WEIGHTS)
    for implementation in ("_cython", "_numpy"):
        for kernel in ("poly_mac", "word_macs"):
            found = getattr(importlib.import_module(f"secagg_ext.{implementation}"), kernel)
            monkeypatch.setattr(secagg_ext, kernel, found)
        federation.site().decrypt(aggregate)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shapes", [{"w": (0,)}, {"w": ()}, {"w": (1,), "c": (0,)}, {"w": (3,), "c": ()}])
def test_models_of_next_to_nothing(variant, shapes):
    federation = federate(variant, encrypt={"exclude": ["c"]} if "c" in shapes else "all")
    states = random_states(2, shapes)
    federation.assert_mean(federation.site().decrypt(federation.sum(states)), states)


@pytest.mark.parametrize("size", [3, 30_000])
@pytest.mark.parametrize("params", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_an_update_has_its_tags_in_few_bytes(variant, params, size):
    """Sixteen, and eight for each element, whatever its size: at most 300 more than without tags of words."""
    federation = federate(variant, params, max_abs=1.0)
    update = federation.site().encrypt({"w": np.ones(size, np.float32)})
    assert federation.site().verified
    moduli = tag_moduli(federation.keys.server)
    assert moduli[0] == TAG_MODULUS == P
    of_words = 8 * (len(moduli) - 1)
    assert WORD_TAG_NBYTES == 8
    assert 0 <= of_words <= 300
    nbytes = update.nbytes - update.header.tail_offset - len(update.header.head)
    assert nbytes == tail_nbytes(len(moduli), 1) == 16 + of_words + 96 + 32
    assert len(update.tail.tags) == update.header.tag_count == len(moduli)
    assert all(0 <= tag < modulus for tag, modulus in zip(update.tail.tags, moduli, strict=True))


# What tags hang on.

OTHERS = {
    "another round": lambda header: replace(header, round=4),
    "another layout": lambda header: replace(
        header, layout=Layout.of({"v": np.zeros(5, np.float32)}, federate("flashe").config)
    ),
    "another base": lambda header: replace(header, base=bytes(32)),
    "another manifest": lambda header: replace(header, manifest=bytes(32)),
    "another max_abs": lambda header: replace(header, aggregation=replace(header.aggregation, max_abs=2.0)),
    "another max_weight": lambda header: replace(header, aggregation=replace(header.aggregation, max_weight=2.0)),
    "another max_clients": lambda header: replace(header, aggregation=replace(header.aggregation, max_clients=3)),
    "another epoch": lambda header: replace(header, epoch=1),
    "another key": lambda header: replace(header, key="0" * 64),
    "other params": lambda header: replace(header, params=replace(header.params, overflow="clip")),
    "another site": lambda header: replace(header, contributions=(Contribution("site-2", bytes(32)),)),
    "another nonce": lambda header: replace(header, contributions=(Contribution("site-1", bytes(31) + b"\1"),)),
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_what_a_tag_hangs_on(change):
    federation = federate("flashe")
    header = header_of(federation, ("site-1", bytes(32)))
    other = change(header)
    key = federation.keys.client
    tags = {tag_of(federation, one, [[1, 2, 3]]) for one in (header, other)}
    assert len(tags) == 2
    alphas = {numbers_of(key, one)[0] for one in (header, other)}
    pads = {numbers_of(key, one)[1] for one in (header, other)}
    assert len(pads) == 2  # no pad serves twice
    of_one_sum = replace(other, contributions=header.contributions) == header
    assert (len(alphas) == 1) == of_one_sum  # or tags do not add up


def test_a_tag_hangs_on_the_key_and_its_epoch():
    federation = federate("flashe")
    header = header_of(federation, ("site-1", bytes(32)))
    key, other = federation.keys.client, make_keys("flashe", federation.config.params, 1).client
    rotated = secagg.ClientKey(key.params, key.secret_material(), key._root, epoch=1)
    rerooted = secagg.ClientKey(key.params, key.secret_material(), bytes(32))
    tags = []
    for one in (key, other, rotated, rerooted):
        authenticator = Authenticator(one, header)
        authenticator.add_integers(np.arange(5, dtype=np.uint64), signed=False)
        tags.append(authenticator.tags(bodies_of(header)))
    assert len(set(tags)) == 4


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_tag_hangs_on_the_body(variant):
    """Of one nonce, too; α does not, so that tags of any bodies add up."""
    federation = federate(variant)
    header = header_of(federation, ("site-1", bytes(32)))
    authenticator = Authenticator(federation.keys.client, header)
    tags = [authenticator.tags([body]) for body in (bytes(32), bytes(31) + b"\1", b"\x80" + bytes(31))]
    for column in zip(*tags, strict=True):
        assert len(set(column)) == 3
    assert authenticator.tags([bytes(32)]) == tags[0]
    alphas, pads = zip(*(numbers_of(federation.keys.client, header, [bytes([n]) * 32]) for n in range(3)), strict=True)
    assert len(set(alphas)) == 1 < len(set(pads)) == 3


def test_every_contribution_has_a_body():
    federation = federate("flashe")
    header = header_of(federation, ("site-1", bytes(32)), ("site-2", bytes(32)))
    for bodies in ([], [bytes(32)], [bytes(32)] * 3):
        with pytest.raises(ValueError, match="zip"):
            Authenticator(federation.keys.client, header).tags(bodies)


def test_a_tag_does_not_hang_on_the_kind():
    """An aggregate's tag is that of its updates."""
    federation = federate("flashe")
    header = header_of(federation, ("site-1", bytes(32)))
    tags = {tag_of(federation, replace(header, kind=kind), [[7]]) for kind in ("update", "aggregate")}
    assert len(tags) == 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_state_that_is_encrypted_again_has_other_tags(variant):
    """A new nonce, and so new pads: two tags of one content tell nothing."""
    site = federate(variant).site()
    tags = [site.encrypt({"w": np.zeros(3, np.float32)}).tail.tags for _ in range(8)]
    for column in zip(*tags, strict=True):
        assert len(set(column)) == 8


def test_the_bound_on_forgeries():
    """Of a billion values, one a word, half as many again of padding, and in all attempts that an epoch allows."""
    roots = MAX_FAILURES * 15 * 10**8
    assert Fraction(roots, P) < Fraction(1, 2**90) < Fraction(1, 2**64)


def test_it_shows_no_secret():
    federation = federate("flashe")
    header = header_of(federation, ("site-1", bytes(32)))
    authenticator = Authenticator(federation.keys.client, header)
    authenticator.add_integers(np.arange(5, dtype=np.uint64), signed=False)
    alpha, pads = numbers_of(federation.keys.client, header)
    for number in (alpha, pads):
        assert str(number) not in repr(authenticator)
        assert f"{number:x}" not in repr(authenticator)
    with pytest.raises(TypeError, match="is secret and is not pickled"):
        pickle.dumps(authenticator)
