"""Seeded updates: one half of a ciphertext is what a public nonce generates, the other is sent and hides as before."""

from __future__ import annotations

import math

import numpy as np
import pytest
from expansion import expansion
from federation import TINY, federate, random_states
from phases import phase
from quantised import mean_of, quantised, rebuilt

from secagg import generate_keys
from secagg.backends.registry import load_backend
from secagg.errors import ConfigError, DecryptionError, MismatchError
from secagg.scheme.codec import codec_for
from secagg.scheme.keystream import Masks
from secagg.trust.key import ClientKey
from secagg.wire.header import Contribution

SEEDED = ["seal", "seal-BGV", "tenseal"]
seeded = pytest.mark.parametrize("variant", SEEDED)
#: Two data primes of unequal size, and a special one.
TWO_PRIMES = {
    "CKKS": {"poly_modulus_degree": 4096, "coeff_mod_bit_sizes": [40, 36, 30], "scale_bits": 34},
    "BGV": {
        "poly_modulus_degree": 4096,
        "coeff_mod_bit_sizes": [33, 31, 24],
        "plain_modulus_bits": 40,
        "value_bits": 9,
    },
}
SHAPES = {"w": (40, 30), "b": (7,)}


def federation_of(variant, **more):
    numbers = {"max_clients": 4, "max_abs": 1.0}
    return federate(variant, {scheme: block | more for scheme, block in TWO_PRIMES.items()}, **numbers)


def c0_of(federation, update, block):
    """The rows of an update's block."""
    params, degree = federation.config.params, federation.config.params.poly_modulus_degree
    size = degree * sum(params.data_bit_sizes) // 8
    (_, payload), *_ = update.frames()
    bits, rows = (
        np.unpackbits(np.frombuffer(payload, np.uint8)[block * size :][:size], bitorder="little"),
        [],
    )
    for width in params.data_bit_sizes:
        row, bits = bits[: degree * width].reshape(degree, width), bits[degree * width :]
        rows.append(row.astype(np.uint64) @ (np.uint64(1) << np.arange(width, dtype=np.uint64)))
    return np.array(rows)


def primes_of(federation):
    return federation.keys.server.primes[: len(federation.config.params.data_bit_sizes)]


def ciphertext_of(federation, update, block):
    """Both polynomials, as the library writes them."""
    nonce = update.header.contributions[0].nonce
    degree = federation.config.params.poly_modulus_degree
    return np.stack([c0_of(federation, update, block), expansion(nonce, primes_of(federation), degree, block)])


def big_state(federation, blocks=2, seed=0):
    size = blocks * federation.codec.block_values - 100
    return random_states(1, {"w": (size,)}, seed)[0]


# What an update holds.


@seeded
def test_an_update_is_half_a_ciphertext(variant):
    """Its blocks hold c0 and nothing else; everything else is the same."""
    half, whole = federation_of(variant, seeded=True), federation_of(variant, seeded=False)
    state = big_state(half, 3)
    one, two = half.site().encrypt(state), whole.site().encrypt(state)
    params = half.config.params
    polynomial = params.poly_modulus_degree * sum(params.data_bit_sizes) // 8
    assert one.header.blocks("encrypted") == two.header.blocks("encrypted") == 3
    assert sum(frame.nbytes for frame in one.header.frames) == 3 * polynomial
    assert two.nbytes - one.nbytes == 3 * polynomial + len(two.header.head) - len(one.header.head)
    tail = 16 + 8 * (one.header.tag_count - 1) + 96 + 32
    assert one.nbytes == len(one.to_bytes()) == len(one.header.head) + 3 * polynomial + 32 + tail


@seeded
def test_a_ciphertext_is_one_that_the_library_could_have_drawn(variant):
    """With c1 regenerated, the library itself decrypts it to what was encoded."""
    federation = federation_of(variant)
    assert federation.config.params.seeded
    site, state = federation.site(), big_state(federation)
    update = site.encrypt(state)
    backend = load_backend(federation.config.lib)(federation.config.params, federation.keys.client)
    out = np.empty(state["w"].size)
    decoder = federation.codec.decoder([out], [out.shape], [0], [1.0], 1)
    for block in range(2):
        decoder.decode(block, backend.decrypt(ciphertext_of(federation, update, block).reshape(-1)))
    assert decoder.weight_sum == pytest.approx(1, abs=1e-4)
    assert np.abs(out - state["w"]).max() <= federation.codec.mean_error(1, 0.999) * 1.01


def test_the_noise_of_a_ciphertext_is_the_library_s():
    """c0 + c1·s is the message and 42 coin flips times t: no more noise than a symmetric encryption has."""
    federation = federation_of("seal-BGV", rounding="nearest")
    state, key = big_state(federation), federation.keys.client
    update = federation.site().encrypt(state)
    plain, secret = key.server.plain_modulus, key.secret_material().secret
    errors = []
    for block in range(2):
        words = ciphertext_of(federation, update, block)
        total = phase(words, secret, primes_of(federation))
        errors += [(int(value) + plain // 2) // plain for value in total]
    assert max(map(abs, errors)) <= 21
    assert np.var(errors) == pytest.approx(10.5, rel=0.1)
    assert abs(np.mean(errors)) < 6 * math.sqrt(10.5 / len(errors))


@seeded
def test_without_its_nonce_an_update_is_noise(variant):
    """Another nonce, or c1 of another block, and nothing of the message is left."""
    federation = federation_of(variant)
    update = federation.site().encrypt({"w": np.zeros(10)})
    primes, secret = primes_of(federation), federation.keys.client.secret_material().secret
    c0, c1 = ciphertext_of(federation, update, 0)
    right = phase(np.stack([c0, c1]), secret, primes)
    others = [expansion(bytes(32), primes, 4096, 0), expansion(update.header.contributions[0].nonce, primes, 4096, 1)]
    largest = math.prod(primes) // 2
    assert max(map(abs, right)) < largest // 16
    for other in others:
        wrong = phase(np.stack([c0, other]), secret, primes)
        assert abs(np.mean([abs(int(value)) / largest for value in wrong]) - 0.5) < 0.05  # uniform


# Nonces.


@seeded
def test_encrypting_a_round_again_is_safe(variant):
    """Another nonce, so another c1; and the difference of both c0 tells nothing, as it is not that of the noise."""
    federation = federation_of(variant)
    site, state = federation.site(), big_state(federation)
    first, again = (site.encrypt(state, round=3) for _ in range(2))
    assert first.header.contributions[0].nonce != again.header.contributions[0].nonce
    for block in range(2):
        one, two = (ciphertext_of(federation, update, block) for update in (first, again))
        assert (one[0] != two[0]).mean() > 0.999
        assert (one[1] != two[1]).mean() > 0.999
    # Were c1 the same, the difference of both c0 would be one of two plaintexts and small errors.
    primes = primes_of(federation)
    difference = (one[0].astype(object) - two[0].astype(object)) % np.array(primes, dtype=object)[:, None]
    known = phase(np.stack([difference, np.zeros_like(difference)]), difference, primes)
    assert np.mean([abs(int(value)) for value in known]) > math.prod(primes) / 8


def derived_alike(key, purpose, *fields, subkey=ClientKey.subkey):
    """Nonces that are one for all."""
    return b"n" * 32 if purpose == b"secagg nonce v1" else subkey(key, purpose, *fields)


@seeded
def test_the_same_nonce_gives_the_same_c1(variant, monkeypatch):
    """Sites that share a nonce share c1, wherever they are; c0 is drawn anew by the library all the same."""
    federation = federation_of(variant)
    monkeypatch.setattr(ClientKey, "subkey", derived_alike)
    one, two = (ciphertext_of(federation, site.encrypt({"w": np.zeros(9)}), 0) for site in federation.sites(2))
    np.testing.assert_array_equal(one[1], two[1])
    assert (one[0] != two[0]).mean() > 0.9


# Sums.


@seeded
@pytest.mark.usefixtures("kernels")
def test_sums_of_several_sites(variant):
    federation = federation_of(variant)
    states, weights = random_states(4, SHAPES), [1, 0.5, 0.05, 0.77]
    aggregate = federation.sum(states, weights)
    federation.assert_mean(federation.site().decrypt(aggregate, like=states[0]), states, weights)


@seeded
def test_an_aggregate_is_the_sum_of_the_ciphertexts(variant):
    """The server adds c0 alone; the sum of all c1 belongs to it."""
    federation = federation_of(variant)
    states = random_states(3, SHAPES)
    updates = [site.encrypt(state) for site, state in zip(federation.sites(3), states, strict=True)]
    aggregate = federation.add(updates)
    moduli = np.array(primes_of(federation), dtype=object)[:, None]
    c0, c1 = sum(ciphertext_of(federation, update, 0).astype(object) for update in updates) % moduli
    np.testing.assert_array_equal(c0_of(federation, aggregate, 0), c0.astype(np.uint64))
    backend = load_backend(federation.config.lib)(federation.config.params, federation.keys.client)
    plain = backend.decrypt(np.stack([c0, c1]).astype(np.uint64).reshape(-1))
    cipher = backend.cipher(0, aggregate.header.contributions)
    np.testing.assert_array_equal(cipher.decrypt(0, c0.astype(np.uint64).reshape(-1)), plain)


def test_libraries_of_one_federation():
    """TenSEAL encrypts and seal decrypts, and the other way round: a nonce means the same c1 to both."""
    tenseal = federation_of("tenseal")
    states = random_states(2, SHAPES)
    sites = [tenseal.site("site-1"), tenseal.using("seal").site("site-2")]
    aggregate = tenseal.add(site.encrypt(state) for site, state in zip(sites, states, strict=True))
    for site in sites:
        tenseal.assert_mean(site.decrypt(aggregate, like=states[0]), states)


def test_seeded_or_not_the_integers_are_the_same():
    states = random_states(2, SHAPES)
    means = []
    for choice in (True, False):
        federation = federation_of("seal-BGV", rounding="nearest", seeded=choice)
        means.append(federation.site().decrypt(federation.sum(states)))
    for name in SHAPES:
        np.testing.assert_array_equal(means[0][name], means[1][name])
    for name, small in (("w", False), ("b", True)):
        sums = sum(quantised(state[name], 1.0, 1.0, 9, small=small) for state in states)
        expected = mean_of(sums, [1.0, 1.0], 1.0, 9, small=small).astype(np.float32)
        np.testing.assert_array_max_ulp(means[0][name].reshape(-1), expected)


@seeded
def test_seeded_and_whole_updates_do_not_mix(variant):
    half, whole = federation_of(variant, seeded=True), federation_of(variant, seeded=False)
    state = random_states(1, SHAPES)[0]
    for one, other in ((half, whole), (whole, half)):
        given, expected = one.config.params.seeded, other.config.params.seeded
        with pytest.raises(
            MismatchError, match=f"other params: seeded {given}, expected {expected}; .*`seeded: false`"
        ):
            other.aggregator().add(one.site().encrypt(state))


@pytest.mark.parametrize("scheme", ["CKKS", "BGV"])
def test_public_key_backends_refuse_seeds(scheme):
    variant = {"CKKS": "pyfhel", "BGV": "pyfhel-BGV"}[scheme]
    whole = federation_of(variant)
    assert not whole.config.params.seeded
    with pytest.raises(ConfigError, match=r"'pyfhel' encrypts under the public key.*set seeded: false for all sites"):
        federation_of("seal" if scheme == "CKKS" else "seal-BGV").using("pyfhel").site()


def test_no_keys_for_seeds_that_a_backend_cannot_make():
    """What no site could use is refused before keys are handed out."""
    config = federation_of("seal-BGV").using("pyfhel").config
    with pytest.raises(ConfigError, match="set seeded: false"):
        generate_keys(config)


def test_a_nonce_that_gives_too_few_words(monkeypatch):
    """Nobody finds one; were there one, it is no native error and no wrong sum."""
    federation = federation_of("seal-BGV")
    aggregate = federation.sum(random_states(2, SHAPES))
    site = federation.site()
    monkeypatch.setattr(Masks, "add", lambda *_: False)
    with pytest.raises(DecryptionError):
        site.decrypt(aggregate)


@seeded
def test_order_of_contributions_is_no_matter(variant):
    federation = federation_of(variant)
    states = random_states(3, SHAPES)
    aggregate = federation.sum(states)
    turned = rebuilt(aggregate, contributions=aggregate.header.contributions[::-1])
    one, two = (federation.site().decrypt(each) for each in (aggregate, turned))
    assert all((one[name] == two[name]).all() for name in SHAPES)


@seeded
def test_what_a_seeded_backend_is_asked_for(variant):
    """A cipher of one contribution encrypts what a cipher of the same decrypts, from any block."""
    federation = federation_of(variant)
    backend = load_backend(federation.config.lib)(federation.config.params, federation.keys.client)
    codec = codec_for(federation.config.params, federation.config.aggregation)
    plain = codec.encoder([np.full(9, 0.5)], [(9,)], [1.0], 1.0).encode(0, 1)
    contribution = [Contribution("a", b"x" * 32)]
    words = backend.cipher(0, contribution).encrypt(5, plain.copy())
    found = backend.cipher(0, contribution).decrypt(5, words.copy())
    np.testing.assert_allclose(found.astype(np.complex128), plain.astype(np.complex128), atol=1e-5)
    elsewhere = backend.cipher(0, contribution).decrypt(4, words.copy())
    assert not np.allclose(elsewhere, found, atol=1)


def test_tiny_federations_of_tenseal_are_seeded():
    assert federate("tenseal", TINY).config.params.seeded
