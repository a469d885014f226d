"""A hundred thousand forged sums in CKKS, BGV and FLASHE: none is accepted.

The server has the updates of this round and of the last, with their tags, and changes words, tags or both, in half of
the forgeries so that tags follow as far as it can make them. Most are held against the tags alone, as a site holds
them; some hundreds a scheme go the whole way through `Client.decrypt`, which of a lattice scheme decrypts none of them.
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np
import pytest
from federation import TINY, TINY_AGGREGATION, federate, random_states, twin_of
from signed import ROUND, Parts, Signed, ring_of, sign_federation

import secagg
from secagg.errors import DecryptionError
from secagg.scheme.params import LatticeParams
from secagg.scheme.ring import CLEAR_RING
from secagg.trust.failures import Failures
from secagg.trust.tags import Authenticator, tag_moduli
from secagg.wire.header import Header
from secagg.wire.tail import Proof, Tail

TOTAL = 100_000
#: Of each scene, that go through a client.
WHOLE_WAY = 150

SMALLEST = {"poly_modulus_degree": 1024, "coeff_mod_bit_sizes": [26], "scale_bits": 18, "scheme": "CKKS"}
BGV = {"poly_modulus_degree": 2048, "coeff_mod_bit_sizes": [53], "plain_modulus_bits": 30, "value_bits": 8}
SCENES = {
    "CKKS, seeded": ("seal", SMALLEST),
    "CKKS, whole": ("tenseal", TINY | {"seeded": False}),
    "BGV, seeded": ("seal-BGV", BGV | {"scheme": "BGV"}),
    "BGV, whole": ("seal-BGV", BGV | {"scheme": "BGV", "seeded": False}),
    "FLASHE": ("flashe", {"value_bits": 8, "scheme": "FLASHE"}),
}


@dataclass
class Sum:
    """What a server sends: encrypted words, shape (blocks, rows, N), clear ones, tags, and who is listed."""

    words: np.ndarray
    clear: np.ndarray
    tags: list[int]
    listed: int = 0

    def copy(self) -> Sum:
        return Sum(self.words.copy(), self.clear.copy(), list(self.tags), self.listed)

    def same(self, other: Sum) -> bool:
        return (
            self.listed == other.listed
            and self.tags == other.tags
            and bool((self.words == other.words).all() and (self.clear == other.clear).all())
        )


class Scene:
    """A round of three sites, the one before, and lists that a server may put above a sum."""

    def __init__(self, variant: str, params: dict) -> None:
        federation = federate(variant, params, encrypt={"exclude": ["c"]}, **TINY_AGGREGATION)
        self.signed: Signed = sign_federation(federation)
        shapes = {"w": (federation.codec.block_values + 9,), "c": (7,)}  # two blocks, and one in the clear
        states = random_states(3, shapes, largest=0.2)
        self.updates = self.signed.encrypt(states)
        others = [*self.signed.encrypt(states), *self.signed.encrypt(states, round=ROUND - 1)]
        self.aggregate = self.signed.add(self.updates)
        self.states, self.params, self.key = states, federation.config.params, federation.keys.client
        self.lattice = isinstance(self.params, LatticeParams)
        self.ring = ring_of(federation, "encrypted")
        self.moduli = np.array(self.ring.moduli, object)[:, None]
        self.tag_moduli = tag_moduli(federation.keys.server)
        self.honest, *terms = map(self.taken, (self.aggregate, *self.updates, *others))
        self.terms, self.others = terms[:3], terms[3:]
        header, theirs = self.aggregate.header, others[0].header.contributions
        first, second, third = header.contributions
        swapped = (replace(first, nonce=second.nonce), replace(second, nonce=first.nonce), third)
        lists = [(first, second), (second, third), (*theirs, second, third), swapped]
        self.headers: list[Header] = [header, *(replace(header, contributions=each) for each in lists)]
        (one,), all_ = others[0].tail.proofs, self.aggregate.tail.proofs
        #: With each list; of the last one, no proof goes with both sites and nonces.
        self.proofs: list[tuple[Proof, ...]] = [all_, all_[:2], all_[1:], (one, *all_[1:]), all_]

    def taken(self, update: secagg.Update) -> Sum:
        encrypted, clear = Parts.of(update).payloads
        words = self.ring.from_bytes(memoryview(encrypted)).reshape(-1, len(self.ring.moduli), self.ring.degree)
        return Sum(words, CLEAR_RING.from_bytes(memoryview(clear)), list(update.tail.tags))

    @cached_property
    def authenticators(self) -> list[Authenticator]:
        """One for each list; its pads are derived once."""
        made = []
        for header in self.headers:
            authenticator = Authenticator(self.key, header)
            authenticator._pads = cache(authenticator._pads)  # type: ignore[method-assign]
            made.append(authenticator)
        return made

    def fits(self, forged: Sum) -> bool:
        """What a site finds of the tags, with hash keys that are sampled once for all forgeries of a list."""
        authenticator = copy.copy(self.authenticators[forged.listed])
        authenticator._state, authenticator._signs = np.zeros((2, 2), np.uint64)
        words = forged.words.reshape(-1)
        if self.lattice:
            tags = authenticator._words = copy.copy(authenticator._words)
            tags._samples = [copy.copy(sample) for sample in tags._samples]
            tags._state = np.zeros_like(tags._state)
            authenticator.add_ciphertext(words)
        else:
            authenticator.add_integers(words - self.pads(forged.listed), signed=False)
        authenticator.add_integers(forged.clear, signed=True)
        return authenticator.fits(self.tail(forged))

    def tail(self, forged: Sum) -> Tail:
        """Its tags, and the proofs of who is listed."""
        return Tail(tuple(forged.tags), self.proofs[forged.listed])

    def pads(self, listed: int) -> np.ndarray:
        """The pads of FLASHE of all that are listed."""
        if listed not in self._pads:
            backend = self.signed.federation.backend(self.params, self.key)
            zeros = np.zeros(self.honest.words.size, np.uint64)
            self._pads[listed] = -backend.cipher(ROUND, self.headers[listed].contributions).decrypt(0, zeros)
        return self._pads[listed]

    @cached_property
    def _pads(self) -> dict[int, np.ndarray]:
        return {}

    def build(self, forged: Sum) -> secagg.Update:
        """The container, with the proofs that the server has."""
        payloads = [self.ring.to_bytes(forged.words.reshape(-1)).tobytes(), forged.clear.tobytes()]
        tail = self.tail(forged)
        return Parts(self.headers[forged.listed], payloads, tail.tags, tail.proofs).build()

    def combine(self, terms: list[tuple[int, Sum]]) -> Sum:
        """Σ factor·update of words, of clear words and of tags, each modulo its own."""
        words = sum(self.times(factor, term.words) for factor, term in terms)
        clear = np.zeros_like(self.honest.clear)
        for factor, term in terms:
            clear += np.uint64(factor % 2**64) * term.clear
        columns = zip(self.tag_moduli, *([factor * tag for tag in term.tags] for factor, term in terms), strict=True)
        return Sum(self.reduced(words), clear, [sum(tags) % modulus for modulus, *tags in columns])

    def times(self, factor: int, words: np.ndarray) -> np.ndarray:
        """A multiple of words; small factors only, of either sign."""
        if not self.lattice:
            return np.uint64(factor % 2**64) * words
        product = np.uint64(abs(factor)) * words % self.moduli.astype(np.uint64)
        return product if factor >= 0 else self.moduli.astype(np.uint64) - product

    def reduced(self, words: np.ndarray) -> np.ndarray:
        return words % self.moduli.astype(np.uint64) if self.lattice else words


class Forger:
    """Draws forgeries, each kind in turn."""

    def __init__(self, scene: Scene, seed: int) -> None:
        self.scene, self.rng = scene, np.random.default_rng(seed)

    def factor(self) -> int:
        return int(self.rng.choice([-3, -2, -1, 0, 2, 3, 5, 100]))

    def place(self, words: np.ndarray) -> tuple[int, ...]:
        return tuple(int(self.rng.integers(size)) for size in words.shape)

    def flips(self) -> Sum:
        forged = self.scene.honest.copy()
        for _ in range(self.rng.integers(1, 4)):
            place = self.place(forged.words)
            forged.words[place] ^= np.uint64(1 << int(self.rng.integers(self.bits(place))))
        forged.words = self.scene.reduced(forged.words)
        return forged

    def bits(self, place: tuple[int, ...]) -> int:
        return self.scene.ring.moduli[place[1]].bit_length() - 1

    def clear_flips(self) -> Sum:
        forged = self.scene.honest.copy()
        forged.clear[self.rng.integers(forged.clear.size)] ^= np.uint64(1 << int(self.rng.integers(64)))
        return forged

    def tag_flips(self) -> Sum:
        forged = self.scene.honest.copy()
        index = int(self.rng.integers(len(forged.tags)))
        modulus = self.scene.tag_moduli[index]
        forged.tags[index] = (forged.tags[index] ^ 1 << int(self.rng.integers(modulus.bit_length() - 1))) % modulus
        return forged

    def scaled(self) -> Sum:
        return self.scene.combine([(self.factor(), self.scene.honest)])

    def negated(self) -> Sum:
        return self.scene.combine([(-1, self.scene.honest)])

    def weighted(self) -> Sum:
        """Dropped, doubled, one for another, weighted anew."""
        return self.scene.combine([(int(self.rng.integers(-1, 4)), term) for term in self.scene.terms])

    def another_more(self) -> Sum:
        """An update of this round that is not listed, or of the last one; or one in the place of another."""
        term = self.scene.others[self.rng.integers(len(self.scene.others))]
        terms = [(1, self.scene.honest), (int(self.rng.choice([-1, 1, 2])), term)]
        if self.rng.integers(2):
            terms.append((-1, self.scene.terms[self.rng.integers(3)]))
        return self.scene.combine(terms)

    def of_the_last_round(self) -> Sum:
        return self.scene.combine([(1, term) for term in self.scene.others[3:]])

    def added_plaintext(self) -> Sum:
        """A constant more: in a lattice a constant polynomial, which is every word of c0; else a lane of some words."""
        forged, block = self.scene.honest.copy(), int(self.rng.integers(2))
        value = np.uint64(self.rng.integers(1, 2**20))
        if self.scene.lattice:
            forged.words[block, : len(self.scene.params.data_bit_sizes)] += value
        else:
            forged.words[block, 0, : self.rng.integers(1, 4096)] += value
        forged.words = self.scene.reduced(forged.words)
        return forged

    def added_in_the_clear(self) -> Sum:
        forged = self.scene.honest.copy()
        forged.clear[: self.rng.integers(1, 8)] += np.uint64(self.rng.integers(1, 2**40))
        return forged

    def swapped_blocks(self) -> Sum:
        forged = self.scene.honest.copy()
        forged.words = forged.words[::-1].copy()
        return forged

    def swapped_words(self) -> Sum:
        forged = self.scene.honest.copy()
        if self.rng.integers(4):
            block, row, word = self.place(forged.words)
            other = int(self.rng.integers(forged.words.shape[2]))
            forged.words[block, row, [word, other]] = forged.words[block, row, [other, word]]
        else:
            first, second = self.rng.integers(forged.clear.size, size=2)
            forged.clear[[first, second]] = forged.clear[[second, first]]
        return forged

    def block_of_another(self) -> Sum:
        """A block of one update in the place of the sum's."""
        forged, block = self.scene.honest.copy(), int(self.rng.integers(2))
        terms = [*self.scene.terms, *self.scene.others]
        forged.words[block] = terms[self.rng.integers(len(terms))].words[self.rng.integers(2)]
        return forged

    def emptied(self) -> Sum:
        """Zeros, or the key alone, which is (0, Δ)."""
        forged, block = self.scene.honest.copy(), int(self.rng.integers(2))
        half = max(1, forged.words.shape[1] // 2)
        forged.words[block, :half] = 0
        if forged.words.shape[1] > half:
            forged.words[block, half:] = np.uint64(self.rng.integers(1, 2**20))
        return forged

    def under_another_list(self) -> Sum:
        """The honest sum, or one that the list would fit but for its nonces."""
        forged = self.scene.honest.copy()
        forged.listed = int(self.rng.integers(1, 5))
        if forged.listed > 2:
            return forged
        both = self.scene.terms[:2] if forged.listed == 2 else self.scene.terms[1:]  # the other two
        return replace(self.scene.combine([(1, term) for term in both]), listed=forged.listed)

    KINDS = (
        flips,
        clear_flips,
        tag_flips,
        scaled,
        negated,
        weighted,
        another_more,
        of_the_last_round,
        added_plaintext,
        added_in_the_clear,
        swapped_blocks,
        swapped_words,
        block_of_another,
        emptied,
        under_another_list,
    )
    #: What can be known of the tags that words should have; of half of the forgeries, they are left as they were.
    FOLLOWED = frozenset([scaled, negated, weighted, another_more, of_the_last_round, under_another_list])

    def tags_for(self, kind, forged: Sum) -> list[int]:
        """Tags as the kind makes them, as the honest sum has them, guessed, or those of some other sum."""
        tags, honest = forged.tags, self.scene.honest.tags
        if kind is Forger.tag_flips:
            return tags
        choice = self.rng.integers(4)
        if choice < 2:
            return list(tags) if kind in Forger.FOLLOWED or choice else self.guessed(tags)
        if choice == 2:
            return list(honest)
        terms = [*self.scene.terms, *self.scene.others]
        return list(terms[self.rng.integers(len(terms))].tags)

    def guessed(self, tags: list[int]) -> list[int]:
        """The tags, with one or all of them another."""
        found, only = list(tags), int(self.rng.integers(2 * len(tags)))
        for index, modulus in enumerate(self.scene.tag_moduli):
            if only >= len(tags) or only == index:
                found[index] = (found[index] + int(self.rng.integers(1, 2**20))) % modulus
        return found

    def draw(self, number: int) -> tuple[str, Sum]:
        """A forgery that is another sum than the honest one."""
        kind = Forger.KINDS[number % len(Forger.KINDS)]
        while True:
            forged = kind(self)
            forged.tags = self.tags_for(kind, forged)
            if not forged.same(self.scene.honest):
                return kind.__name__, forged


@pytest.fixture(scope="module", params=SCENES.values(), ids=SCENES)
def scene(request) -> Scene:
    return Scene(*request.param)


def test_no_forgery_fits_its_tags(scene):
    assert scene.fits(scene.honest)
    forger, tried = Forger(scene, 11), Counter()
    for number in range(TOTAL // len(SCENES)):
        name, forged = forger.draw(number)
        assert not scene.fits(forged), (number, name)
        tried[name] += 1
    assert tried.total() * len(SCENES) == TOTAL
    assert set(tried) == {kind.__name__ for kind in Forger.KINDS}
    assert min(tried.values()) > 1000
    assert scene.fits(scene.honest)


def test_no_forgery_is_decrypted(scene, monkeypatch):
    """The whole way, each with a count of failures of its own, one error for all, and no block for the library."""
    federation, blocks, refused = scene.signed.federation, [], Counter()
    if scene.lattice:
        genuine = federation.backend.decrypt
        monkeypatch.setattr(federation.backend, "decrypt", lambda self, words: blocks.append(1) or genuine(self, words))
    # Lists that nobody has signed are refused before that, so whoever decrypts here has no project.
    site = secagg.Client(federation.config, federation.keys.client, "site-1")
    forger = Forger(scene, 12)
    for number in range(WHOLE_WAY):
        name, forged = forger.draw(number)
        twin = twin_of(site)
        twin._failures = Failures(federation.keys.server, None)
        with pytest.raises(DecryptionError) as caught:
            twin.decrypt(scene.build(forged), round=ROUND)
        assert caught.value.args == DecryptionError().args
        assert twin._failures._here == 1
        refused[name] += 1
    assert refused.total() == WHOLE_WAY
    assert set(refused) == {kind.__name__ for kind in Forger.KINDS}
    assert not blocks
    federation.assert_mean(scene.signed.site().decrypt(scene.build(scene.honest), round=ROUND), scene.states)


def test_the_short_way_is_the_long_one(scene):
    """Tags that the site itself would compute of forged words fit both ways: what is tried above is its check."""
    forger = Forger(scene, 13)
    for number in range(3 * len(Forger.KINDS)):
        _, forged = forger.draw(number)
        authenticator = Authenticator(scene.key, scene.headers[forged.listed])
        words = forged.words.reshape(-1).copy()
        if scene.lattice:
            authenticator.add_ciphertext(words)
        else:
            authenticator.add_integers(words - scene.pads(forged.listed), signed=False)
        authenticator.add_integers(forged.clear, signed=True)
        assert not authenticator.fits(scene.tail(forged))
        forged.tags = list(authenticator.tags([proof.body for proof in scene.proofs[forged.listed]]))
        assert scene.fits(forged)
