"""Tags over words of ciphertexts, against Python's own integers and one implementation against the other."""

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

# The primes 1 modulo 2**14 next below 2**bits, as in ciphertexts.
BELOW = {20: 1, 30: 3, 40: 9, 54: 66, 60: 1}  # by how many times 2**14
PRIMES = {bits: 2**bits - k * 2**14 + 1 for bits, k in BELOW.items()}
ENDS = (2, 3, 2**32, 2**59 + 1, 2**60 - 1, 2**60)  # moduli at the ends of what is allowed, and next to a word's half

any_modulus = st.sampled_from([*PRIMES.values(), *ENDS]) | st.integers(1, 60).flatmap(
    lambda bits: st.integers(2 ** (bits - 1) + 1, 2**bits)
)
lengths = st.integers(1, 40).map(lambda groups: 8 * groups)  # the compiled kernel reduces after 128 words
seeds = st.integers(0, 2**32 - 1)


def random_row(rng, q, n):
    """Words below q, the smallest and the largest ones more often than chance would have them."""
    words = rng.integers(0, q - 1, n, np.uint64, endpoint=True)
    words[rng.random(n) < 0.1] = 0
    words[rng.random(n) < 0.1] = q - 1
    return words


def random_arrays(moduli, n, counts, pieces, seed):
    """Words, beta, alpha and state."""
    rng = np.random.default_rng(seed)
    elements = [q for q, count in zip(moduli, counts, strict=True) for _ in range(count)]
    none = [np.empty(0, np.uint64)]
    words = np.concatenate(none + [random_row(rng, q, n) for _ in range(pieces) for q in moduli])
    beta = np.concatenate([random_row(rng, q, n) for q in elements])
    alpha = np.concatenate(none + [random_row(rng, q, 1) for _ in range(pieces) for q in elements])
    state = np.concatenate([random_row(rng, q, 1) for q in elements])
    return words, beta, alpha, state


def by_hand(words, moduli, n, counts, beta, alpha, state):
    """The state that `word_macs` leaves."""
    total, multipliers, rows = state.tolist(), iter(alpha.tolist()), words.reshape(-1, n).tolist()
    betas = beta.reshape(-1, n).tolist()
    places = [(row, q) for row, (q, count) in enumerate(zip(moduli, counts, strict=True)) for _ in range(count)]
    for first in range(0, len(rows), len(moduli)):
        for element, (row, q) in enumerate(places):
            dot = sum(x * y for x, y in zip(rows[first + row], betas[element], strict=True))
            total[element] = (total[element] + next(multipliers) * dot) % q
    assert next(multipliers, None) is None
    return total


def fixed(array):
    array.flags.writeable = False
    return array


def check(ext, moduli, n, counts, words, beta, alpha, state):
    expected = by_hand(words, moduli, n, counts, beta, alpha, state)
    total = state.copy()
    assert ext.word_macs(fixed(words), moduli, n, counts, fixed(beta), fixed(alpha), total) is None
    assert total.tolist() == expected


@pytest.mark.parametrize("n", [8, 120, 128, 136, 1024, 8192, 32768])
@pytest.mark.parametrize("q", PRIMES.values())
def test_every_prime_and_length(ext, q, n):
    for pieces, count in ((1, 3), (2, 1)):
        check(ext, (q,), n, (count,), *random_arrays((q,), n, (count,), pieces, n))


def test_sums_on_both_sides_of_half_a_word(ext):
    """NumPy takes a list of integers below 2**63 and from there on for floats."""
    words, beta = np.zeros(8, np.uint64), np.zeros(16, np.uint64)
    words[:2], beta[:2], beta[8] = (16, 1), (2**59, 1), 1  # sums of 2**63 + 1 and of 16
    alpha, state = np.ones(2, np.uint64), np.zeros(2, np.uint64)
    check(ext, (2**60 - 1,), 8, (2,), words, beta, alpha, state)


@pytest.mark.parametrize("n", [8, 128, 8192, 32768])
@pytest.mark.parametrize("q", [*PRIMES.values(), *ENDS])
def test_words_that_are_all_the_largest(ext, q, n):
    """The largest sums: what does not fit 128 bits is lost here first."""
    largest = [np.full(size, q - 1, np.uint64) for size in (2 * n, 2 * n, 4, 2)]
    check(ext, (q,), n, (2,), *largest)


@pytest.mark.parametrize("q", [*PRIMES.values(), *ENDS])
def test_numbers_of_sixty_bits_are_reduced(ext, q):
    """As the documentation has it, they need not be below the modulus."""
    for n in (8, 1024):
        check(ext, (q,), n, (2,), *(np.full(size, 2**60 - 1, np.uint64) for size in (2 * n, 2 * n, 4, 2)))
        check(ext, (q,), n, (2,), *random_arrays((2**60,), n, (2,), 3, n))


@pytest.mark.parametrize("counts", [(1, 1, 1, 1), (2, 3, 3, 4), (6, 1, 2, 1), (1, 7, 1, 2)])
@pytest.mark.parametrize("pieces", [0, 1, 2, 5])
def test_moduli_have_elements_of_their_own(ext, counts, pieces):
    moduli = (PRIMES[60], PRIMES[20], PRIMES[40], PRIMES[54])
    check(ext, moduli, 16, counts, *random_arrays(moduli, 16, counts, pieces, pieces))


def test_which_word_meets_what(ext):
    moduli, n, counts = (101, 103), 8, (1, 2)
    words = np.zeros((3, 2, n), np.uint64)
    beta, alpha = np.zeros((3, n), np.uint64), np.array([[2, 3, 4], [5, 6, 7], [8, 9, 10]], np.uint64)
    words[1, 1, 3], words[2, 0, 7] = 11, 12  # piece, row, place
    beta[0, 7], beta[1, 3], beta[2, 3], beta[2, 7] = 13, 14, 15, 16  # element, place
    state = np.array([1, 2, 3], np.uint64)
    ext.word_macs(words.reshape(-1), moduli, n, counts, beta.reshape(-1), alpha.reshape(-1), state)
    assert state.tolist() == [(1 + 8 * 12 * 13) % 101, (2 + 6 * 11 * 14) % 103, (3 + 7 * 11 * 15) % 103]


def test_no_pieces_leave_any_state(ext):
    none = np.empty(0, np.uint64)
    _, beta, _, state = random_arrays((PRIMES[60], 5), 8, (2, 3), 0, 1)
    before = state.tolist()
    ext.word_macs(none, (PRIMES[60], 5), 8, (2, 3), beta, none, state)
    assert state.tolist() == before


@settings(deadline=None)
@given(
    shape=st.lists(st.tuples(any_modulus, st.integers(1, 4)), min_size=1, max_size=4),
    n=lengths,
    pieces=st.integers(0, 3),
    seed=seeds,
)
def test_any_words_give_the_same(shape, n, pieces, seed):
    moduli, counts = zip(*shape, strict=True)
    arrays = random_arrays(moduli, n, counts, pieces, seed)
    for ext in (compiled, plain):
        check(ext, moduli, n, counts, *arrays)


@settings(deadline=None)
@given(q=any_modulus, n=lengths, seed=seeds, rest=st.sampled_from([0, 1, -1]))
def test_sums_next_to_a_multiple_of_the_modulus(q, n, seed, rest):
    """There an estimated quotient is one off first: a word is chosen so that the row's sum is `rest` modulo q."""
    words, beta, _, _ = random_arrays((q,), n, (1,), 1, seed)
    words[-1], beta[-1] = 0, 1
    dot = sum(x * y for x, y in zip(words.tolist(), beta.tolist(), strict=True))
    words[-1] = (rest - dot) % q
    for ext, (alpha, before) in itertools.product((compiled, plain), ((1, 0), (q - 1, 0), (q - 1, q - 1))):
        state = np.array([before], np.uint64)
        ext.word_macs(words, (q,), n, (1,), beta, np.array([alpha], np.uint64), state)
        assert state.tolist() == [(before + alpha * rest) % q]


@settings(deadline=None)
@given(cuts=st.lists(st.integers(0, 6), max_size=3), seed=seeds)
def test_pieces_may_come_in_any_number_of_calls(cuts, seed):
    moduli, n, counts = (PRIMES[60], PRIMES[40]), 16, (2, 3)
    words, beta, alpha, state = random_arrays(moduli, n, counts, 6, seed)
    expected = by_hand(words, moduli, n, counts, beta, alpha, state)
    for ext in (compiled, plain):
        total = state.copy()
        for first, end in itertools.pairwise([0, *sorted(cuts), 6]):
            some, own = words[first * 2 * n : end * 2 * n], alpha[first * 5 : end * 5]
            ext.word_macs(some, moduli, n, counts, beta, own, total)
        assert total.tolist() == expected


def test_tags_of_sums_are_sums_of_tags(ext):
    """What tags rest on: they are linear in the words."""
    moduli, n, counts, pieces = (PRIMES[60], PRIMES[54], PRIMES[20]), 64, (2, 3, 6), 4
    one, beta, alpha, _ = random_arrays(moduli, n, counts, pieces, 1)
    other, *_ = random_arrays(moduli, n, counts, pieces, 2)
    both = ((one + other).reshape(pieces, 3, n) % np.array(moduli, np.uint64)[:, None]).reshape(-1)
    tags = [np.zeros(11, np.uint64) for _ in range(3)]
    for words, tag in zip((one, other, both), tags, strict=True):
        ext.word_macs(words, moduli, n, counts, beta, alpha, tag)
    assert ((tags[0] + tags[1]) % np.repeat(np.array(moduli, np.uint64), counts)).tolist() == tags[2].tolist()
    assert tags[2].any()


def test_the_neighbours_of_the_state_stay(ext):
    words, beta, alpha, _ = random_arrays((PRIMES[60],), 16, (2,), 3, 1)
    memory = np.full(6, 7, np.uint64)
    ext.word_macs(words, (PRIMES[60],), 16, (2,), beta, alpha, memory[2:4])
    assert memory[[0, 1, 4, 5]].tolist() == [7] * 4
    assert 7 not in memory[2:4].tolist()


def test_nothing_beyond_an_array_is_touched():
    """Arrays that end where readable memory ends, or begin there."""
    program = """
import ctypes, mmap
import numpy as np
import secagg_ext._cython as compiled

libc = ctypes.CDLL(None, use_errno=True)
page = mmap.PAGESIZE

def guarded(size, end):
    room = mmap.mmap(-1, 3 * page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(room))
    for other in (0, 2):
        assert libc.mprotect(ctypes.c_void_p(address + other * page), ctypes.c_size_t(page), 0) == 0
    return np.frombuffer(room, np.uint64, size, 2 * page - 8 * size if end else page)

for end in (False, True):
    for n, pieces in ((8, 1), (8, 3), (72, 1), (80, 2)):
        words, beta, alpha, state = (guarded(size, end) for size in (2 * n * pieces, 3 * n, 3 * pieces, 3))
        for array in (words, beta, alpha):
            array[:] = 1
        compiled.word_macs(words, (1009, 1013), n, (1, 2), beta, alpha, state)
        assert state.tolist() == [n * pieces] * 3
print("done")
"""
    run = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "done\n"
