"""Packing, checking and adding words, against Python's own integers and one implementation against the other."""

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

CLARA = (2**60 - 2**14 + 1, 2**40 - 2**14 + 1) * 2


def modulus(bits):
    """Moduli whose words take `bits` bits, 2**bits among them."""
    low = 2 ** (bits - 1) + 1
    return st.sampled_from([low, 2**bits]) | st.integers(low, 2**bits)


all_moduli = st.lists(st.integers(1, 64).flatmap(modulus), min_size=1, max_size=4).map(tuple)
lengths = st.integers(1, 9).map(lambda groups: 8 * groups)
seeds = st.integers(0, 2**32 - 1)


def random_words(moduli, n, k, seed):
    """Words below their moduli, the smallest and the largest ones more often than chance would have them."""
    rng = np.random.default_rng(seed)
    words = np.empty((k, len(moduli), n), np.uint64)
    for row, q in enumerate(moduli):
        words[:, row] = rng.integers(0, q - 1, (k, n), np.uint64, endpoint=True)
        words[:, row][rng.random((k, n)) < 0.1] = 0
        words[:, row][rng.random((k, n)) < 0.1] = q - 1
    return words.reshape(-1)


def packed_by_hand(words, moduli, n):
    """The same bits by Python's integers: a row is the number whose digits, lowest first, are its words."""
    rows = words.reshape(-1, len(moduli), n).tolist()
    packed = b""
    for block in rows:
        for row, q in zip(block, moduli, strict=True):
            bits = (q - 1).bit_length()
            number = sum(word << (i * bits) for i, word in enumerate(row))
            packed += number.to_bytes(n * bits // 8, "little")
    return np.frombuffer(packed, np.uint8)


def pack(ext, words, moduli, n):
    k = words.size // (len(moduli) * n)
    out = np.full(k * ext.block_nbytes(moduli, n), 0xAA, np.uint8)
    return ext.pack_words(words, moduli, n, out), out


def unpack(ext, packed, moduli, n):
    k = packed.size // ext.block_nbytes(moduli, n)
    out = np.full(k * len(moduli) * n, 0xAAAA, np.uint64)
    return ext.unpack_words(packed, moduli, n, out), out


def read_only(array):
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("bits", range(1, 65))
def test_every_width_packs_unpacks_and_adds(ext, bits):
    for q, n in itertools.product({2 ** (bits - 1) + 1, 3 * 2**bits // 4 + 1, 2**bits}, [8, 72]):
        moduli = (q,)
        words, more = random_words(moduli, n, 3, bits), random_words(moduli, n, 3, bits + 100)
        found, packed = pack(ext, read_only(words), moduli, n)
        assert found == -1
        assert packed.tobytes() == packed_by_hand(words, moduli, n).tobytes()
        assert ext.check_words(read_only(packed), moduli, n) == -1
        found, back = unpack(ext, packed, moduli, n)
        assert found == -1
        np.testing.assert_array_equal(back, words)
        acc = packed_by_hand(more, moduli, n).copy()
        assert ext.add_words(acc, packed, moduli, n) == -1
        expected = [(x + y) % q for x, y in zip(words.tolist(), more.tolist(), strict=True)]
        assert unpack(ext, acc, moduli, n)[1].tolist() == expected


@settings(deadline=None)
@given(moduli=all_moduli, n=lengths, k=st.integers(0, 3), seed=seeds)
def test_rows_of_any_moduli_are_packed_alike(moduli, n, k, seed):
    words, more = random_words(moduli, n, k, seed), random_words(moduli, n, k, seed + 1)
    assert compiled.block_nbytes(moduli, n) == sum((q - 1).bit_length() for q in moduli) * n // 8
    results = []
    for ext in (compiled, plain):
        found, packed = pack(ext, words, moduli, n)
        assert found == -1
        np.testing.assert_array_equal(packed, packed_by_hand(words, moduli, n))
        assert ext.check_words(packed, moduli, n) == -1
        np.testing.assert_array_equal(unpack(ext, packed, moduli, n)[1], words)
        acc = pack(ext, more, moduli, n)[1]
        assert ext.add_words(acc, packed, moduli, n) == -1
        assert ext.check_words(acc, moduli, n) == -1
        results.append(acc)
    np.testing.assert_array_equal(*results)


@settings(deadline=None)
@given(moduli=all_moduli, n=lengths, k=st.integers(1, 3), data=st.data())
def test_any_bytes_are_read_alike(moduli, n, k, data):
    """Bytes that nobody packed: a word over its modulus is common, and both find the same first one."""
    packed = np.random.default_rng(data.draw(seeds)).integers(0, 256, k * plain.block_nbytes(moduli, n), np.uint8)
    limits = np.tile(np.repeat(np.array([q - 1 for q in moduli], np.uint64), n), k)
    found, words = unpack(plain, packed, moduli, n)
    np.testing.assert_array_equal(packed_by_hand(words, moduli, n), packed)
    over = np.flatnonzero(words > limits)
    assert found == (over[0] if over.size else -1)
    assert plain.check_words(packed, moduli, n) == found
    assert compiled.check_words(packed, moduli, n) == found
    for ext in (plain, compiled):
        assert ext.add_words(np.zeros_like(packed), packed, moduli, n) == found
    again, same = unpack(compiled, packed, moduli, n)
    assert again == found
    np.testing.assert_array_equal(same, words)


@settings(deadline=None)
@given(moduli=all_moduli, n=lengths, k=st.integers(1, 3), seed=seeds)
def test_any_words_are_packed_alike(moduli, n, k, seed):
    words = np.random.default_rng(seed).integers(0, 2**64 - 1, k * len(moduli) * n, np.uint64, endpoint=True)
    found, packed = pack(compiled, words, moduli, n)
    expected, same = pack(plain, words, moduli, n)
    assert found == expected
    np.testing.assert_array_equal(packed, same)


@pytest.mark.parametrize("position", [0, 7, 8, 16383, 16384, 32767, 32768, 40000, 65535])
def test_a_word_that_equals_its_modulus_is_found_where_it_is(ext, position):
    n = 8192
    words = random_words(CLARA, n, 2, 7)
    words[position] = CLARA[position // n % 4]
    words[position + 1 :: 777] = 2**64 - 1  # later ones do not matter
    found, packed = pack(ext, words, CLARA, n)
    assert found == position
    assert ext.check_words(packed, CLARA, n) == position
    assert ext.add_words(np.zeros_like(packed), packed, CLARA, n) == position
    assert unpack(ext, packed, CLARA, n)[0] == position


def test_clara_block_takes_the_bytes_of_its_bits(ext):
    assert ext.block_nbytes(CLARA, 8192) == 204_800


def test_modulus_two_to_the_64_wraps(ext):
    x, y = np.full(8, 2**64 - 1, np.uint64), np.arange(8, dtype=np.uint64)
    acc = x.view(np.uint8).copy()
    ext.add_words(acc, y.view(np.uint8), (2**64,), 8)
    np.testing.assert_array_equal(acc.view(np.uint64), x + y)


def test_nothing_beyond_an_array_is_touched():
    """Arrays that end where readable memory ends; the compiled loops load eight bytes at a time."""
    program = """
import ctypes, mmap
import numpy as np
from secagg_ext import _cython as ext

libc = ctypes.CDLL(None, use_errno=True)
page = mmap.PAGESIZE

def guarded(size, dtype):
    room = mmap.mmap(-1, 2 * page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(room))
    assert libc.mprotect(ctypes.c_void_p(address + page), ctypes.c_size_t(page), 0) == 0
    nbytes = size * np.dtype(dtype).itemsize
    return np.frombuffer(room, dtype, size, page - nbytes)

n = 24
for bits in range(1, 65):
    moduli = (2**bits, 2**min(bits + 1, 64))
    words, back = guarded(2 * n, np.uint64), guarded(2 * n, np.uint64)
    nbytes = ext.block_nbytes(moduli, n)
    packed, acc = guarded(nbytes, np.uint8), guarded(nbytes, np.uint8)
    words[:] = np.arange(2 * n) % 2**min(bits, 62)
    assert ext.pack_words(words, moduli, n, packed) == -1
    assert ext.check_words(packed, moduli, n) == -1
    assert ext.unpack_words(packed, moduli, n, back) == -1
    assert (back == words).all()
    assert ext.add_words(acc, packed, moduli, n) == -1
    assert (acc == packed).all()
    packed[:] = 255
    assert (ext.add_words(acc, packed, (2 ** (bits - 1) + 1, *moduli[1:]), n) >= 0) == (bits > 1)
print("done")
"""
    run = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "done\n"
