"""Two attacks on the shared key, by a server that changes ciphertexts of a sum and watches what becomes of it.

A review found both, when sums of CKKS were not verified, and those of BGV by their plaintexts, after decryption. The
server makes all digests right, and keeps tags and proofs, which all sites have signed.

- CKKS: a block (c0, c1) = (0, Δ) decrypts to Δ·s. Within ``max_abs``, it is a mean that holds the secret key.
- BGV: t·B·X^j more in c0 and t·K more in c1 leave the plaintext as it is, but for what wraps modulo q: whether the site
  refuses tells one coefficient of the key.

With seeds, c1 is not the server's to choose, and it is left with c0 alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from federation import LATTICE, MODES, TINY, TINY_AGGREGATION, VARIANTS, federate, is_symmetric, random_states
from phases import coefficients, inverse_roots
from signed import ROUND, Parts, Signed, ring_of, sign_federation

import secagg
from secagg.errors import DecryptionError, ImplausibleSumError
from secagg.trust.tags import Authenticator

BLOCKS = 3
#: Times the largest value of s at a root of unity, about 130, below what max_abs leaves room for.
DELTA = 2**12


@dataclass
class Scene:
    """A round as it should have been, of three blocks."""

    signed: Signed
    states: list
    aggregate: secagg.Update

    @property
    def primes(self) -> tuple[int, ...]:
        return self.signed.config.params.data_primes(self.signed.federation.keys.server.primes)

    @property
    def degree(self) -> int:
        return self.signed.config.params.poly_modulus_degree

    def changed(self, change: Callable[[np.ndarray], None]) -> secagg.Update:
        """The sum with other words, Python's integers of shape (blocks, polynomials, primes, N) to `change`."""
        parts, ring = Parts.of(self.aggregate), ring_of(self.signed.federation, "encrypted")
        words = ring.from_bytes(memoryview(parts.payloads[0])).astype(object)
        words = words.reshape(BLOCKS, -1, len(self.primes), self.degree)
        change(words)
        words %= np.array(self.primes, object)[:, None]
        parts.payloads[0] = ring.to_bytes(words.astype(np.uint64).reshape(-1)).tobytes()
        forged = parts.build()
        assert forged != self.aggregate
        return forged


def make_scene(mode: str, seeded: bool) -> Scene:
    params = {"CKKS": TINY | {"seeded": seeded}, "BGV": {"value_bits": 8, "seeded": seeded}}
    federation = federate(mode, params, encrypt={"exclude": ["c"]}, **TINY_AGGREGATION)
    signed = sign_federation(federation)
    size = BLOCKS * federation.codec.block_values - federation.head_values(2)
    states = random_states(3, {"w": (size,), "c": (5,)}, largest=0.1)
    states = [{name: value.astype(np.float64) for name, value in state.items()} for state in states]
    return Scene(signed, states, signed.add(signed.encrypt(states)))


CASES = [
    pytest.param((mode, seeded), id=f"{mode}-{'seeded' if seeded else 'whole'}")
    for mode, (variant, _) in MODES.items()
    if variant in LATTICE
    for seeded in (False, True)
    if not seeded or is_symmetric(VARIANTS[variant][0])
]


@pytest.fixture(scope="module", params=CASES)
def scene(request):
    return make_scene(*request.param)


@pytest.fixture(scope="module", params=[case for case in CASES if "BGV" not in case.id])
def ckks_scene(request):
    return make_scene(*request.param)


@pytest.fixture(scope="module", params=[case for case in CASES if "BGV" in case.id])
def bgv_scene(request):
    return make_scene(*request.param)


@pytest.fixture
def decrypted(monkeypatch):
    """Blocks that any backend of a lattice was asked to decrypt."""
    blocks = []
    for variant in LATTICE:
        backend = secagg.backends.registry.load_backend(VARIANTS[variant][0])
        if "decrypt" in vars(backend) and not hasattr(vars(backend)["decrypt"], "spied"):
            genuine = backend.decrypt

            def spy(self, words, genuine=genuine):
                blocks.append(words.copy())
                return genuine(self, words)

            spy.spied = True
            monkeypatch.setattr(backend, "decrypt", spy)
    return blocks


def assert_refused_before_decryption(scene, forged, decrypted):
    """Not a word of it reaches a library, the error is the one there is, and it counts; nothing else tells."""
    site = scene.signed.site()
    for failures in (1, 2):
        with pytest.raises(DecryptionError) as caught:
            site.decrypt(forged, like=scene.states[0], round=ROUND)
        assert caught.value.args == DecryptionError().args
        assert str(caught.value) == str(DecryptionError())
        assert caught.value.__cause__ is None
        assert site._failures._here == failures
    assert not decrypted
    mean = site.decrypt(scene.aggregate, like=scene.states[0], round=ROUND)
    assert len(decrypted) == BLOCKS  # the spy sees what is decrypted
    scene.signed.federation.assert_mean(mean, scene.states)
    decrypted.clear()


def power(scene, exponent):
    """X to some power, as words: word k is the value at ψ^(2·rev(k) + 1)."""
    degree, rows = scene.degree, []
    bits = degree.bit_length() - 1
    for prime in scene.primes:
        root = pow(int(inverse_roots(prime, degree)[degree // 2]), -1, prime)
        rows.append([pow(root, exponent * (2 * int(f"{k:0{bits}b}"[::-1], 2) + 1), prime) for k in range(degree)])
    return np.array(rows, object)


def test_a_power_of_x_is_one(scene):
    """Held against what SEAL's keys are read by."""
    for exponent in (0, 1, scene.degree - 1):
        expected = [int(place == exponent) for place in range(scene.degree)]
        for prime, row in zip(scene.primes, power(scene, exponent), strict=True):
            assert coefficients(row, prime).tolist() == expected


# CKKS.


def key_alone(scene, block, shift=0, delta=DELTA):
    """A block that is (0, Δ·X^shift), or with seeds c0 = 0."""
    multiplier = delta * power(scene, shift)

    def change(words):
        words[block, 0] = 0
        if words.shape[1] == 2:
            words[block, 1] = multiplier

    return change


@pytest.mark.parametrize("block", range(BLOCKS))
@pytest.mark.usefixtures("kernels")
def test_a_sum_that_is_the_key(ckks_scene, decrypted, block):
    forged = ckks_scene.changed(key_alone(ckks_scene, block))
    assert_refused_before_decryption(ckks_scene, forged, decrypted)


@pytest.mark.parametrize("delta", [1, -1, 2**8, 2**18])
def test_a_key_of_any_size(ckks_scene, decrypted, delta):
    forged = ckks_scene.changed(key_alone(ckks_scene, 1, delta=delta))
    assert_refused_before_decryption(ckks_scene, forged, decrypted)


def test_without_tags_the_model_would_hold_the_key(ckks_scene, decrypted, monkeypatch):
    """What the check is for: of two blocks, a mean within all bounds, every coefficient of the secret key is read."""
    scene = ckks_scene
    monkeypatch.setattr(Authenticator, "fits", lambda *_: True)

    def change(words):
        key_alone(scene, 1)(words)
        key_alone(scene, 2, shift=1)(words)

    forged, site = scene.changed(change), scene.signed.site()
    if scene.signed.config.params.seeded:  # c1 is not the server's: the noise that this is does not look like a mean
        with pytest.raises(ImplausibleSumError):
            site.decrypt(forged, round=ROUND)
        assert len(decrypted) == BLOCKS  # all the same, it was decrypted
        return
    mean = site.decrypt(forged, round=ROUND)["w"]
    assert len(decrypted) == BLOCKS
    assert np.abs(mean).max() <= 1.0
    values = np.concatenate([np.zeros(1), mean]).reshape(BLOCKS, -1) * 3  # three sites of weight 1
    symmetric = [real_part(block * 2**20 / DELTA) for block in values[1:]]
    found = unfold(*(np.rint(2 * part).astype(int) for part in symmetric))
    prime = scene.primes[0]
    secret = coefficients(scene.signed.federation.keys.client.secret_material().secret[0], prime)
    expected = np.where(secret > prime // 2, secret - prime, secret).astype(int)
    assert set(expected.tolist()) == {-1, 0, 1}
    assert found.tolist() == expected.tolist()


def real_part(slots):
    """Half of the coefficients of m(X) + m(1/X), from the real parts of m at the roots exp(πi/N)^(3^i)."""
    degree = 2 * slots.size
    exponents = np.array([pow(3, place, 2 * degree) for place in range(slots.size)])
    angles = np.outer(np.arange(degree), exponents) % (2 * degree) * (np.pi / degree)
    return np.cos(angles) @ slots * (2 / degree)


def unfold(of_key, of_shifted):
    """A polynomial s, from the coefficients of s(X) + s(1/X) and X·s(X) + s(1/X)/X, one after another."""
    degree = of_key.size
    found = np.zeros(degree, dtype=int)
    found[0], found[-1] = of_key[0] // 2, -of_shifted[0] // 2
    for place in range(1, degree // 2):
        found[place] = of_key[place] + found[degree - place]
        found[degree - place - 1] = found[place - 1] - of_shifted[place]
    return found


# BGV.


def multiples_of_t(scene, block, exponent, bound, multiple):
    """t·B·X^j more in c0, and t·K more in c1 where it is sent."""
    t = scene.signed.federation.keys.server.plain_modulus
    term = t * bound * power(scene, exponent)

    def change(words):
        words[block, 0] += term
        if words.shape[1] == 2:
            words[block, 1] += t * multiple

    return change


def bounds_of(scene):
    """Multiples of t from far below what wraps to the very edge of it."""
    q = np.prod(np.array(scene.primes, object))
    return [1, q // (2 * scene.signed.federation.keys.server.plain_modulus) - 1]


@pytest.mark.parametrize("edge", [0, 1], ids=["small", "at the edge"])
@pytest.mark.parametrize(("block", "exponent", "multiple"), [(0, 0, 1), (1, 5, -1), (BLOCKS - 1, -1, 2**8)])
@pytest.mark.usefixtures("kernels")
def test_a_sum_that_wraps_by_a_coefficient_of_the_key(bgv_scene, decrypted, block, exponent, multiple, edge):
    change = multiples_of_t(bgv_scene, block, exponent % bgv_scene.degree, bounds_of(bgv_scene)[edge], multiple)
    assert_refused_before_decryption(bgv_scene, bgv_scene.changed(change), decrypted)


def test_without_tags_of_words_a_refusal_would_tell(bgv_scene, decrypted, monkeypatch):
    """What the check is for: sums that do not wrap are as before, and with c1 a refusal says that s_j is 1."""
    scene = bgv_scene
    monkeypatch.setattr(Authenticator, "fits", lambda *_: True)
    forged = scene.changed(multiples_of_t(scene, 1, 7, 1, 1))
    mean = scene.signed.site().decrypt(forged, like=scene.states[0], round=ROUND)
    scene.signed.federation.assert_mean(mean, scene.states)
    assert len(decrypted) == BLOCKS
    if scene.signed.config.params.seeded:
        return
    q, t = np.prod(np.array(scene.primes, object)), scene.signed.federation.keys.server.plain_modulus
    secret = coefficients(scene.signed.federation.keys.client.secret_material().secret[0], scene.primes[0]).tolist()
    learnt = []
    for exponent in range(12):
        change = multiples_of_t(scene, 1, exponent, (q // 2 - q // 16) // t, q // (8 * t))
        try:
            scene.signed.site().decrypt(scene.changed(change), round=ROUND)
        except ImplausibleSumError:
            learnt.append(True)
        else:
            learnt.append(False)
    assert learnt == [coefficient == 1 for coefficient in secret[:12]]


# FLASHE, whose pads know nothing of a key: what comes nearest.


@pytest.mark.parametrize("word", [0, 4095, 4096, -1])
@pytest.mark.parametrize("more", [1, 2**18, 2**63, "zero", "all"])
@pytest.mark.parametrize("mode", ["flashe", "flashe/auto", "flashe/previous"])
def test_words_of_flashe(mode, word, more):
    """A lane more, a bit above all lanes, and words in the place of others: seen once the pads are off, and dropped."""
    federation = federate(mode, encrypt={"exclude": ["c"]})
    signed = sign_federation(federation)
    size = BLOCKS * federation.codec.block_values - federation.head_values(2)
    states = random_states(3, {"w": (size,), "c": (5,)}, largest=0.1)
    aggregate = signed.add(signed.encrypt(states))
    parts = Parts.of(aggregate)
    words = np.frombuffer(parts.payloads[0], "<u8").copy()
    if isinstance(more, str):
        words[: 1 if more == "zero" else None] = 0
    else:
        words[[word]] += np.array([more], np.uint64)
    parts.payloads[0] = words.tobytes()
    site = signed.site()
    with pytest.raises(DecryptionError) as caught:
        site.decrypt(parts.build(), like=states[0], round=ROUND)
    assert caught.value.args == DecryptionError().args
    assert site._failures._here == 1
    federation.assert_mean(site.decrypt(aggregate, round=ROUND), states)
