"""Tags of ciphertext words, against Python's integers: what they are, that they add up, how hard they are to hit."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from federation import LATTICE, federate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plain_word_tags import counts_of, elements, samples

from secagg.errors import ConfigError
from secagg.scheme.params import MAX_COEFF_MOD_BITS, CKKSParams
from secagg.scheme.word_tags import TAG_BITS, WordTags, _Samples, element_count

#: Of few bits, where most candidates are skipped, of many, and at both ends of a width.
MODULI = [5, 2**11 + 1, 2**12 - 3, 134176769, 2**38 - 45, 2**53 - 111, 2**59 + 55, 1152921504606830593]
BITS = range(12, 61)

moduli = st.lists(st.sampled_from(MODULI), min_size=1, max_size=3).map(tuple)
seeds = st.integers(0, 2**32 - 1)


def keys_of(moduli, seed=0):
    """A key for each element."""
    rng = np.random.default_rng(seed)
    return [rng.bytes(32) for _ in range(sum(counts_of(moduli)))]


def random_words(moduli, degree, polynomials, seed):
    """The words of polynomials, every fifth of them as large as can be."""
    rng = np.random.default_rng(seed)
    rows = [rng.integers(0, q, degree, dtype=np.uint64) for _ in range(polynomials) for q in moduli]
    for row, q in zip(rows, itertools.cycle(moduli)):
        row[::5] = q - 1
    return np.concatenate(rows) if rows else np.empty(0, np.uint64)


def tags_of(moduli, degree, keys, *pieces):
    tags = WordTags(moduli, degree, keys)
    for piece in pieces:
        tags.add(piece)
    return tags.elements()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(moduli, st.sampled_from([8, 24, 128, 1024]), st.integers(0, 5), seeds, st.data())
@pytest.mark.usefixtures("kernels")
def test_any_words(moduli, degree, polynomials, seed, data):
    """However they are cut into calls, at polynomials."""
    keys, words = keys_of(moduli, seed), random_words(moduli, degree, polynomials, seed)
    cuts = sorted(data.draw(st.lists(st.integers(0, polynomials), max_size=3)))
    pieces = np.split(words, [cut * len(moduli) * degree for cut in cuts])
    found = tags_of(moduli, degree, keys, *pieces)
    assert list(found) == elements(words.tolist(), moduli, degree, keys)
    assert all(type(element) is int for element in found)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(moduli, st.integers(1, 4), st.integers(2, 5), seeds)
@pytest.mark.usefixtures("kernels")
def test_they_add_up(moduli, polynomials, sites, seed):
    """Elements of a sum modulo the primes are the sums of elements, and multiples are multiples."""
    degree, keys = 64, keys_of(moduli, seed)
    updates = [random_words(moduli, degree, polynomials, seed + site) for site in range(sites)]
    column = np.tile(np.repeat(np.array(moduli, object), degree), polynomials)
    total = (sum(words.astype(object) for words in updates) % column).astype(np.uint64)
    found = [tags_of(moduli, degree, keys, words) for words in updates]
    of_elements = WordTags(moduli, degree, keys).moduli
    expected = tuple(sum(tags) % q for q, *tags in zip(of_elements, *found, strict=True))
    assert tags_of(moduli, degree, keys, total) == expected
    tripled = (updates[0].astype(object) * 3 % column).astype(np.uint64)
    expected = tuple(3 * tag % q for q, tag in zip(of_elements, found[0], strict=True))
    assert tags_of(moduli, degree, keys, tripled) == expected


def test_no_words_have_elements_of_zero():
    """So that a tag of nothing is its pad."""
    assert tags_of((97, 193), 8, keys_of((97, 193))) == (0,) * sum(counts_of((97, 193)))


def test_every_word_counts():
    """One more in any word, of any polynomial and prime, is seen by the elements of that prime, and by no other."""
    moduli, degree, polynomials = (2**11 + 1, 2**12 - 3), 8, 3
    keys = keys_of(moduli)
    words = random_words(moduli, degree, polynomials, 1)
    before = tags_of(moduli, degree, keys, words)
    count = counts_of(moduli)[0]
    for place in range(words.size):
        row = place // degree % 2
        changed = words.copy()
        changed[place] = (changed[place] + np.uint64(1)) % np.uint64(moduli[row])
        after = tags_of(moduli, degree, keys, changed)
        differs = [one != other for one, other in zip(before, after, strict=True)]
        own, other = (differs[:count], differs[count:])[:: -1 if row else 1]
        assert sum(own) >= len(own) - 2  # an element of 12 bits may miss it
        assert not any(other)


def test_places_and_polynomials_count():
    """Words, rows and blocks that change places have other elements."""
    moduli, degree = (134176769,), 16
    keys, words = keys_of(moduli), random_words(moduli, degree, 3, 2).reshape(3, degree)
    swapped_blocks, swapped_words, turned = words[[1, 0, 2]], words.copy(), words[:, ::-1].copy()
    swapped_words[:, [1, 2]] = words[:, [2, 1]]
    found = {tags_of(moduli, degree, keys, each.reshape(-1)) for each in (words, swapped_blocks, swapped_words, turned)}
    assert len(found) == 4


# How many elements, and what they promise.


@pytest.mark.parametrize("bits", BITS)
def test_how_many_elements(bits):
    """The fewest whose moduli have 112 bits between them, by their lower bounds."""
    count = element_count(bits)
    assert count == counts_of([2**bits - 1])[0]
    assert (count - 1) * (bits - 1) < TAG_BITS == 112 <= count * (bits - 1)
    tags = WordTags((2**bits - 1,), 8, keys_of([2**bits - 1]))
    assert tags.moduli == (2**bits - 1,) * count


@pytest.mark.parametrize("bits", BITS)
def test_the_bound_on_an_attempt(bits):
    """Of all α and β, a part of 2/q lets one element take other words: all κ of them, at most 2**-100."""
    smallest = 2 ** (bits - 1) + 1
    assert Fraction(2, smallest) ** element_count(bits) <= Fraction(1, 2**100)


def test_the_bound_holds_for_all_that_params_allow():
    """No data prime is of fewer bits than 12."""
    for degree in MAX_COEFF_MOD_BITS:
        least = degree.bit_length() - 1 + 2
        assert least in BITS
        with pytest.raises(ConfigError):
            CKKSParams(degree, (least - 1,), 8)
        with pytest.raises(ConfigError):
            CKKSParams(degree, (61,), 8)


@pytest.mark.parametrize("variant", LATTICE)
def test_primes_of_keys_have_their_bits(variant):
    """The number of elements follows from the sizes in the header, which are those of the primes."""
    federation = federate(variant)
    params = federation.config.params
    primes = params.data_primes(federation.keys.server.primes)
    assert [prime.bit_length() for prime in primes] == list(params.data_bit_sizes)


def test_the_bound_is_one_that_is_reached():
    """With one element modulo 5: of all keys, the part 2/q − 1/q² takes a word for another, none much more."""
    taken, trials = 0, 4000
    for seed in range(trials):
        (key, *_) = keys_of((5,), seed)
        beta, alpha = (sample := _Samples(key, 5)).take(8), sample.take(1)
        taken += int(alpha[0]) * int(beta[3]) * 2 % 5 == 0  # two more in word 3, the tag as it was
    assert taken / trials == pytest.approx(2 / 5 - 1 / 25, abs=0.04)


# Sampling.


def test_candidates_that_are_not_below_the_modulus_are_skipped():
    """AES-256 of counters 0 and 1 under a key of zeros is dc95c078a2408989 ad48… and 530f8afbc74536b9 a963…"""
    lowest = [0xDC, 0xAD, 0x53, 0xA9]  # bytes of the first four words
    assert _Samples(bytes(32), 5).take(3).tolist() == [lowest[0] & 7, lowest[2] & 7, lowest[3] & 7]  # 0xad & 7 is 5
    assert _Samples(bytes(32), 11).take(2).tolist() == [lowest[2] & 15, lowest[3] & 15]
    assert _Samples(bytes(32), 2**60 - 1).take(1).tolist() == [0x098940A278C095DC]


@pytest.mark.parametrize("modulus", MODULI)
def test_samples_are_those_of_the_keystream(modulus):
    key = bytes(range(32))
    expected = list(itertools.islice(samples(key, modulus), 3000))
    assert _Samples(key, modulus).take(3000).tolist() == expected
    assert max(expected) < modulus


@given(st.sampled_from(MODULI), st.lists(st.integers(0, 1500), max_size=6))
def test_samples_do_not_depend_on_how_they_are_taken(modulus, counts):
    """Of a few at a time, or of many; none is lost, and none comes twice."""
    key, source = bytes(31) + b"\1", _Samples(bytes(31) + b"\1", modulus)
    taken = [word for count in counts for word in source.take(count).tolist()]
    assert taken == list(itertools.islice(samples(key, modulus), sum(counts)))
