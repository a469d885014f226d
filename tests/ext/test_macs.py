"""The polynomial over words, against Python's own integers and one implementation against the other."""

from __future__ import annotations

import itertools
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import secagg_ext._cython as compiled
import secagg_ext._numpy as plain
from secagg_ext._cython.macs import _portable_poly_mac

portable = SimpleNamespace(poly_mac=_portable_poly_mac)  # what processors without lanes run

P = 2**127 - 1
TOP = 2**64 - 1
BATCHES = (256, 1024)  # words that the compiled kernel and the plain one reduce at a time
SIZES = sorted({*range(8), 61, *(k * b + d for b in BATCHES for k in (1, 2) for d in (-1, 0, 1)), 3000, 10007})
ALPHAS = [0, 1, 2, 2**63, 2**64 - 1, 2**64, 2**126, P - 2, P - 1, 0x5DEECE66D1234567_89ABCDEF02468ACE % P]
STATES = [0, 1, 2**64 - 1, 2**64, 2**126, P - 1]

# Numbers next to powers of 2 and to p, where carries and reductions end.
edges = st.integers(0, 127).flatmap(lambda bits: st.sampled_from([2**bits - 1, 2**bits, 2**bits + 1]))
numbers = st.one_of(st.integers(0, P - 1), edges.map(lambda x: x % P), edges.map(lambda x: -x % P))


@pytest.fixture(params=[compiled, portable, plain], ids=["cython", "portable", "numpy"])
def ext(request):
    return request.param


def random_words(size, seed):
    """Words, of which every tenth or so is 0 or the largest."""
    rng = np.random.default_rng(seed)
    words = rng.integers(0, 2**64, size, np.uint64)
    words[rng.random(size) < 0.1] = 0
    words[rng.random(size) < 0.1] = TOP
    return words


def state_of(number):
    return np.array([number & TOP, number >> 64], np.uint64)


def number_of(state):
    low, high = state.tolist()
    return low | high << 64


def by_hand(words, alpha, number):
    for word in words.tolist():
        number = (number + word) * alpha % P
    return number


def fixed(array):
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("size", SIZES)
def test_every_size_and_point(ext, size, alpha):
    words = fixed(random_words(size, size))
    for number in (0, P - 1):
        state = state_of(number)
        assert ext.poly_mac(words, alpha, state) is None
        assert number_of(state) == by_hand(words, alpha, number)


def test_the_last_word_meets_the_point_itself(ext):
    words = random_words(3, 0)
    a, b, c = words.tolist()
    alpha, state = 3**50, state_of(0)
    ext.poly_mac(words, alpha, state)
    assert number_of(state) == (a * alpha**3 + b * alpha**2 + c * alpha) % P


def test_no_words_leave_any_state(ext):
    for number in STATES:
        state = state_of(number)
        ext.poly_mac(np.empty(0, np.uint64), 5, state)
        assert number_of(state) == number


@pytest.mark.parametrize("word", [0, 1, 2**32 - 1, 2**63, TOP])
@pytest.mark.parametrize("size", [1, 4, 255, 256, 257, 1024, 2049])
def test_words_that_are_all_alike(ext, size, word):
    """The largest sums, and sums that end next to a multiple of p: there a carry is lost first."""
    words = np.full(size, word, np.uint64)
    for alpha, number in itertools.product(ALPHAS, STATES):
        state = state_of(number)
        ext.poly_mac(words, alpha, state)
        assert number_of(state) == by_hand(words, alpha, number)


@pytest.mark.parametrize("alpha", ALPHAS[1:])
@pytest.mark.parametrize("size", [1, 256, 257, 1025])
@pytest.mark.parametrize("rest", [0, 1, 2, P - 2, P - 1])
def test_results_next_to_the_prime(ext, alpha, size, rest):
    """The state before is chosen so that the result is `rest`: p itself never comes out."""
    words = random_words(size, 9)
    number = (rest - by_hand(words, alpha, 0)) * pow(alpha, -size, P) % P
    state = state_of(number)
    ext.poly_mac(words, alpha, state)
    assert number_of(state) == rest


def test_a_sum_that_folds_to_twice_the_prime(ext):
    """Powers of -2 are next to p or powers of 2, and -1 after 127 words. What the words of one batch and the state
    before sum up to is (p + 2) * (p - 1) + 4 + (p - 2) = 2**254 - 1: in its two halves of 127 bits, p and p."""
    words = np.array([3, *[0] * 124, 1, 1], np.uint64)
    state = state_of(P - 1)
    ext.poly_mac(words, P - 2, state)
    assert by_hand(words, P - 2, P - 1) == 0
    assert number_of(state) == 0


@settings(deadline=None)
@given(size=st.integers(0, 300) | st.sampled_from(SIZES), alpha=numbers, number=numbers, seed=st.integers(0, 2**32 - 1))
def test_any_words_give_the_same(size, alpha, number, seed):
    words = random_words(size, seed)
    expected = by_hand(words, alpha, number)
    for ext in (compiled, portable, plain):
        state = state_of(number)
        ext.poly_mac(words, alpha, state)
        assert number_of(state) == expected


@settings(deadline=None)
@given(words=st.lists(edges.map(lambda x: x & TOP), max_size=140), alpha=numbers, number=numbers)
def test_words_next_to_powers_of_two_give_the_same(words, alpha, number):
    array = np.array(words, np.uint64)
    expected = by_hand(array, alpha, number)
    for ext in (compiled, portable, plain):
        state = state_of(number)
        ext.poly_mac(array, alpha, state)
        assert number_of(state) == expected


@settings(deadline=None)
@given(cuts=st.lists(st.integers(0, 3000) | st.sampled_from(BATCHES), max_size=6), alpha=numbers, number=numbers)
def test_a_stream_may_come_in_pieces(cuts, alpha, number):
    words = random_words(3000, 1)
    whole = state_of(number)
    compiled.poly_mac(words, alpha, whole)
    for ext in (compiled, portable, plain):
        state = state_of(number)
        for piece in np.split(words, sorted(cuts)):
            ext.poly_mac(piece, alpha, state)
        assert state.tolist() == whole.tolist()


def test_values_of_sums_are_sums_of_values(ext):
    """What tags of updates rest on: a polynomial is linear in its words."""
    one, other = random_words(2000, 1) >> np.uint64(1), random_words(2000, 2) >> np.uint64(1)
    alpha, states = 7**40, [state_of(0) for _ in range(3)]
    for words, state in zip((one, other, one + other), states, strict=True):
        ext.poly_mac(words, alpha, state)
    first, second, both = map(number_of, states)
    assert (first + second) % P == both


def test_an_update_of_a_real_size():
    words, alpha = random_words(1 << 20, 3), 0x1234567890ABCDEF1234567890ABCDEF
    states = [state_of(P - 2), state_of(P - 2)]
    compiled.poly_mac(words, alpha, states[0])
    plain.poly_mac(words, alpha, states[1])
    assert states[0].tolist() == states[1].tolist()


def test_the_neighbours_of_the_state_stay(ext):
    memory = np.full(6, 7, np.uint64)
    memory[2:4] = 0
    ext.poly_mac(random_words(200, 1), 3**70, memory[2:4])
    assert memory[[0, 1, 4, 5]].tolist() == [7] * 4
    assert memory[2:4].any()


def test_nothing_beyond_an_array_is_touched():
    """Arrays that end where readable memory ends, or begin there."""
    program = """
import ctypes, mmap
import numpy as np
from secagg_ext._cython import macs

libc = ctypes.CDLL(None, use_errno=True)
page = mmap.PAGESIZE

def guarded(size, end):
    room = mmap.mmap(-1, 3 * page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(room))
    for other in (0, 2):
        assert libc.mprotect(ctypes.c_void_p(address + other * page), ctypes.c_size_t(page), 0) == 0
    return np.frombuffer(room, np.uint64, size, 2 * page - 8 * size if end else page)

for end in (False, True):
    for size in (1, 2, 3, 4, 5, 255, 256, 257, 511):
        words, state = guarded(size, end), guarded(2, end)
        words[:] = 1
        macs.poly_mac(words, 1, state)
        assert state.tolist() == [size, 0]
print("done")
"""
    run = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "done\n"
