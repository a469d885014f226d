"""Sampling words and replacing masks, against Python's own integers and one implementation against the other."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import secagg_ext._cython as compiled
import secagg_ext._numpy as plain

# The primes 1 modulo 2**14 next below 2**bits, as in ciphertexts, and next above 2**(bits - 1): these reject
# nearly half of the candidates.
BELOW = {26: 4, 36: 15, 40: 9, 53: 19, 54: 66, 60: 1, 61: 23}  # by how many times 2**14
ABOVE = {26: 17, 36: 1, 40: 13, 53: 24, 54: 17, 60: 1, 61: 9}
HIGH = {bits: 2**bits - k * 2**14 + 1 for bits, k in BELOW.items()}
LOW = {bits: 2 ** (bits - 1) + k * 2**14 + 1 for bits, k in ABOVE.items()}
PRIMES = [*HIGH.values(), *LOW.values()]


def modulus(bits):
    """Moduli whose words take `bits` bits, 2**bits among them."""
    low = 2 ** (bits - 1) + 1
    return st.sampled_from([low, 2**bits]) | st.integers(low, 2**bits)


all_moduli = st.lists(st.integers(1, 61).flatmap(modulus), min_size=1, max_size=4).map(tuple)
lengths = st.integers(1, 9).map(lambda groups: 8 * groups)
seeds = st.integers(0, 2**32 - 1)


def width(q):
    return (q - 1).bit_length()


def random_words(moduli, n, k, seed):
    """Words below their moduli, the smallest and the largest ones more often than chance would have them."""
    rng = np.random.default_rng(seed)
    words = np.empty((k, len(moduli), n), np.uint64)
    for row, q in enumerate(moduli):
        words[:, row] = rng.integers(0, q - 1, (k, n), np.uint64, endpoint=True)
        words[:, row][rng.random((k, n)) < 0.1] = 0
        words[:, row][rng.random((k, n)) < 0.1] = q - 1
    return words.reshape(-1)


def random_stream(moduli, n, slack, k, seed):
    count = k * sum(n + extra for extra in slack)
    return np.random.default_rng(seed).integers(0, 2**64 - 1, count, np.uint64, endpoint=True)


def region_of(candidates, q):
    """One region: the candidates, under high bits that do not count."""
    noise = np.random.default_rng(len(candidates)).integers(0, 2 ** (64 - width(q)), len(candidates), np.uint64)
    return np.array(candidates, np.uint64) | noise << np.uint64(width(q))


def by_hand(stream, moduli, n, slack, acc):
    """What `add_samples` returns and leaves in `acc`; None in place of the words if a region has too few."""
    rest, words, result = stream.tolist(), acc.tolist(), []
    for region in range(len(words) // n):
        row = region % len(moduli)
        q, count = moduli[row], n + slack[row]
        candidates, rest = [candidate % 2 ** width(q) for candidate in rest[:count]], rest[count:]
        accepted = [candidate for candidate in candidates if candidate < q]
        if len(accepted) < n:
            return region, None
        own = words[region * n : (region + 1) * n]
        result += [(x + y) % q for x, y in zip(own, accepted[:n], strict=True)]
    assert not rest
    return -1, result


def fixed(array):
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("q", PRIMES)
@pytest.mark.parametrize(("n", "k"), [(8, 5), (1024, 2)])
def test_samples_of_a_prime_are_added(ext, q, n, k):
    slack = (64 if q in HIGH.values() else 2 * n + 192,)
    stream, acc = fixed(random_stream((q,), n, slack, k, q % 1000)), random_words((q,), n, k, 1)
    found, expected = by_hand(stream, (q,), n, slack, acc)
    assert found == -1
    assert ext.add_samples(stream, (q,), n, slack, acc) == -1
    assert acc.tolist() == expected


@pytest.mark.parametrize("bits", range(1, 62))
def test_every_width(ext, bits):
    for q, n in itertools.product({2 ** (bits - 1) + 1, 3 * 2**bits // 4 + 1, 2**bits}, [8, 72]):
        moduli, slack = (q, q), (2 * n + 96, 2 * n + 104)
        stream, acc = random_stream(moduli, n, slack, 2, bits), random_words(moduli, n, 2, bits)
        found, expected = by_hand(stream, moduli, n, slack, acc)
        assert found == -1
        assert ext.add_samples(stream, moduli, n, slack, acc) == -1
        assert acc.tolist() == expected


@settings(deadline=None)
@given(moduli=all_moduli, n=lengths, k=st.integers(0, 3), data=st.data())
def test_any_stream_is_sampled_alike(moduli, n, k, data):
    """Any slack, 0 too: that a region has too few is common, and both find the same first one."""
    slack = tuple(data.draw(st.integers(0, 20).map(lambda groups: 8 * groups)) for _ in moduli)
    seed = data.draw(seeds)
    stream, acc = random_stream(moduli, n, slack, k, seed), random_words(moduli, n, k, seed)
    found, expected = by_hand(stream, moduli, n, slack, acc)
    for ext in (compiled, plain):
        total = acc.copy()
        assert ext.add_samples(stream, moduli, n, slack, total) == found
        if found < 0:
            assert total.tolist() == expected


def test_a_round_of_a_real_size(ext):
    moduli, n, slack, k = (HIGH[60], HIGH[40], LOW[53], HIGH[60]), 1024, (8, 64, 1400, 8), 3
    stream, acc = random_stream(moduli, n, slack, k, 5), random_words(moduli, n, k, 6)
    found, expected = by_hand(stream, moduli, n, slack, acc)
    assert found == -1
    assert ext.add_samples(stream, moduli, n, slack, acc) == -1
    assert acc.tolist() == expected


@pytest.mark.parametrize("q", [2, 3, 2**26 - 1, *PRIMES, 2**61 - 1, 2**61])
def test_the_largest_words_add_without_overflow(ext, q):
    stream = region_of([q - 1] * 24, q)
    acc = np.full(24, q - 1, np.uint64)
    assert ext.add_samples(stream, (q,), 24, (0,), acc) == -1
    assert acc.tolist() == [q - 2] * 24


@pytest.mark.parametrize("q", PRIMES)
@pytest.mark.parametrize("place", [0, 5, 7, 8, 15, 16, 23])
def test_a_candidate_that_equals_the_modulus_is_skipped(ext, q, place):
    """Wherever it is in its group; the last word then comes from the slack, the rest of which does not matter."""
    words = list(range(1, 25))
    candidates = [*words[:place], q, *words[place:], *[2 ** width(q) - 1] * 7]
    acc = np.arange(24, dtype=np.uint64)
    assert ext.add_samples(region_of(candidates, q), (q,), 24, (8,), acc) == -1
    assert acc.tolist() == [x + y for x, y in zip(words, range(24), strict=True)]


@pytest.mark.parametrize("q", [HIGH[26], HIGH[53], LOW[60]])
def test_the_last_candidate_may_be_the_last_word(ext, q):
    n, over = 16, 2 ** width(q) - 1
    stream = region_of([*range(1, 16), *[over] * 8, 16], q)
    acc = np.zeros(n, np.uint64)
    assert ext.add_samples(stream, (q,), n, (8,), acc) == -1
    assert acc.tolist() == list(range(1, 17))
    stream = region_of([*range(1, 16), *[over] * 9], q)
    assert ext.add_samples(stream, (q,), n, (8,), acc) == 0


@pytest.mark.parametrize("short", [[0], [1], [4], [5], [3, 1], [2, 4, 5]])
def test_the_first_region_with_too_few_is_named(ext, short):
    moduli, n, slack = (HIGH[53], LOW[36]), 8, (8, 0)
    regions = []
    for region in range(6):
        q, count = moduli[region % 2], n + slack[region % 2]
        words = [1] * count
        if region in short:
            words[: count - 7] = [q] * (count - 7)
        regions.append(region_of(words, q))
    acc = np.zeros(6 * n, np.uint64)
    assert ext.add_samples(np.concatenate(regions), moduli, n, slack, acc) == min(short)
    assert not acc[(min(short) + 1) * n :].any()


def test_the_neighbours_of_acc_stay(ext):
    q, n = LOW[54], 40
    memory = np.full(n + 16, 7, np.uint64)
    memory[8:-8] = 0
    assert ext.add_samples(random_stream((q,), n, (160,), 1, 9), (q,), n, (160,), memory[8:-8]) == -1
    assert (memory[:8] == 7).all()
    assert (memory[-8:] == 7).all()


def test_nothing_beyond_an_array_is_touched():
    """Arrays that end where readable memory ends; compiled loops load many words at a time."""
    program = """
import ctypes, mmap
import numpy as np
from secagg_ext._cython import seeds

libc = ctypes.CDLL(None, use_errno=True)
page = mmap.PAGESIZE

def guarded(size, dtype):
    room = mmap.mmap(-1, 2 * page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(room))
    assert libc.mprotect(ctypes.c_void_p(address + page), ctypes.c_size_t(page), 0) == 0
    nbytes = size * np.dtype(dtype).itemsize
    return np.frombuffer(room, dtype, size, page - nbytes)

for bits in range(1, 62):
    q = max(2**bits - 1, 2)
    stream, acc = guarded(32, np.uint64), guarded(24, np.uint64)
    stream[:] = 1
    stream[20:25] = 2**bits - 1 if bits > 1 else 1  # over, if any can be
    assert seeds.add_samples(stream, (q,), 24, (8,), acc) == -1
    assert (acc == 1).all()
    c0, c1, mask, secret = (guarded(8, np.uint64) for _ in range(4))
    c1[:] = secret[:] = 1
    seeds.replace_mask(c0, c1, mask, secret, (q,), 8)
    assert (c0 == 1).all()
print("done")
"""
    run = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "done\n"


def replaced(words, moduli, n):
    """What `replace_mask` leaves in c0, by Python's integers."""
    rows = [q for q in moduli for _ in range(n)]
    return [(x + (y - z) * s) % q for q, x, y, z, s in zip(rows, *(each.tolist() for each in words), strict=True)]


@pytest.mark.parametrize("q", [2, 3, 4, 5, 2**60, 2**60 + 1, 2**61 - 1, 2**61, *PRIMES])
def test_extreme_words_are_replaced(ext, q):
    ends = {0, 1, 2, q // 2, q - 2, q - 1}
    cases = np.array(list(itertools.product([x for x in ends if 0 <= x < q], repeat=4)), np.uint64)
    cases = np.vstack([cases, np.zeros((-len(cases) % 8, 4), np.uint64)])
    c0, *others = (fixed(column.copy()) for column in cases.T)
    acc = c0.copy()
    ext.replace_mask(acc, *others, (q,), acc.size)
    assert acc.tolist() == replaced([c0, *others], (q,), acc.size)


@settings(deadline=None)
@given(moduli=all_moduli, n=lengths, data=st.data())
def test_any_words_are_replaced_alike(moduli, n, data):
    seed = data.draw(seeds)
    words = [random_words(moduli, n, 1, seed + i) for i in range(4)]
    expected = replaced(words, moduli, n)
    for ext in (compiled, plain):
        acc = words[0].copy()
        ext.replace_mask(acc, *words[1:], moduli, n)
        assert acc.tolist() == expected


@settings(deadline=None)
@given(q=st.integers(1, 61).flatmap(modulus), n=lengths, seed=seeds, rest=st.sampled_from([0, 1, -1]))
def test_sums_next_to_a_multiple_of_the_modulus(q, n, seed, rest):
    """There an estimated quotient is one off first: c0 is chosen so that the result is `rest` modulo q."""
    _, c1, mask, secret = (random_words((q,), n, 1, seed + i) for i in range(4))
    words = zip(c1.tolist(), mask.tolist(), secret.tolist(), strict=True)
    c0 = np.array([(rest - (y - z) * s) % q for y, z, s in words], np.uint64)
    for ext in (compiled, plain):
        acc = c0.copy()
        ext.replace_mask(acc, c1, mask, secret, (q,), n)
        assert acc.tolist() == [rest % q] * n


@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_blocks_share_one_secret(ext, blocks):
    moduli, n = (HIGH[60], LOW[36]), 16
    c0, c1, mask = (random_words(moduli, n, blocks, i) for i in range(3))
    secret, size = random_words(moduli, n, 1, 3), 2 * n
    each = [(c0[at : at + size], c1[at : at + size], mask[at : at + size], secret) for at in range(0, c0.size, size)]
    expected = [word for arrays in each for word in replaced(arrays, moduli, n)]
    ext.replace_mask(c0, c1, mask, secret, moduli, n)
    assert c0.tolist() == expected


def test_a_replaced_mask_decrypts_to_the_same(ext):
    moduli, n = (HIGH[60], HIGH[40], LOW[53], HIGH[36]), 1024
    c0, c1, mask, secret = (random_words(moduli, n, 1, i) for i in range(4))
    acc = c0.copy()
    ext.replace_mask(acc, c1, mask, secret, moduli, n)
    rows = [q for q in moduli for _ in range(n)]
    words = zip(rows, *(each.tolist() for each in (c0, c1, acc, mask, secret)), strict=True)
    assert all((x + y * s - new - z * s) % q == 0 for q, x, y, new, z, s in words)
    assert (acc != c0).mean() > 0.5
    again = acc.copy()
    ext.replace_mask(again, mask, mask, secret, moduli, n)  # arrays that are only read may be one
    np.testing.assert_array_equal(again, acc)
