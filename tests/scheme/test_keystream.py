"""Masks are the expansion of nonces: in any order, by either kernel, of enough words."""

from __future__ import annotations

import math

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from expansion import expansion

from secagg.scheme.keystream import PIECE_NBYTES, Keystream, Masks, slack
from secagg.scheme.params import MAX_COEFF_MOD_BITS

MODULI = (2**36 - 2**14 + 1 - 2**13 * 3, 2**30 + 2**13 + 1)  # few words are rejected, and half of them
DEGREE = 1024


def fill(masks, keys, block, blocks, size=2 * DEGREE):
    out = np.zeros(blocks * size, dtype=np.uint64)
    assert masks.add([Keystream(key) for key in keys], block, out)
    return out


@pytest.mark.usefixtures("kernels")
def test_masks_are_the_expansion():
    masks = Masks(MODULI, DEGREE)
    found = fill(masks, [bytes(range(32))], 0, 3).reshape(3, 2, DEGREE)
    for block in range(3):
        np.testing.assert_array_equal(found[block], expansion(bytes(range(32)), MODULI, DEGREE, block))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("parts", [[7], [1] * 7, [3, 4], [5, 1, 1]], ids=str)
def test_masks_do_not_depend_on_chunks(parts):
    masks, keys = Masks(MODULI, DEGREE), [b"a" * 32, b"b" * 32]
    whole = fill(masks, keys, 2, 7)
    streams, place = [Keystream(key) for key in keys], 0
    for part in parts:
        out = np.zeros(part * 2 * DEGREE, dtype=np.uint64)
        assert masks.add(streams, 2 + place, out)
        np.testing.assert_array_equal(out, whole[place * 2 * DEGREE : (place + part) * 2 * DEGREE])
        place += part
    # And back again: streams remember their place only to be fast.
    again = np.zeros(2 * DEGREE, dtype=np.uint64)
    for block in (6, 0, 3, 3):
        again[:] = 0
        masks.add(streams, 2 + block, again)
        np.testing.assert_array_equal(again, whole[block * 2 * DEGREE : (block + 1) * 2 * DEGREE])


@pytest.mark.usefixtures("kernels")
def test_masks_add_up():
    masks, keys = Masks(MODULI, DEGREE), [bytes([number]) * 32 for number in range(5)]
    moduli = np.repeat(np.array(MODULI, dtype=object), DEGREE)
    expected = sum(fill(masks, [key], 1, 1).astype(object) for key in keys) % moduli
    np.testing.assert_array_equal(fill(masks, keys, 1, 1), expected.astype(np.uint64))
    np.testing.assert_array_equal(fill(masks, keys[::-1], 1, 1), expected.astype(np.uint64))


def test_masks_are_uniform():
    """Chi squared over 64 bins of equal probability, of 60,000 words a row: 63 is expected, 150 rarer than 1e-8."""
    found = fill(Masks(MODULI, DEGREE), [b"u" * 32], 0, 60).reshape(60, 2, DEGREE)
    for row, modulus in enumerate(MODULI):
        counts = np.bincount((found[:, row].reshape(-1).astype(object) * 64 // modulus).astype(int), minlength=64)
        expected = found[:, row].size / 64
        assert ((counts - expected) ** 2 / expected).sum() < 150


def test_keystreams_are_aes_in_counter_mode():
    """Reads of any length and order, from offsets that are whole blocks of AES."""
    key = bytes(range(100, 132))
    size = 3 * PIECE_NBYTES
    expected = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor().update(bytes(size))
    stream = Keystream(key)
    for offset, count in [(0, 5), (16, 0), (16, 100), (0, size), (PIECE_NBYTES, 7), (160, PIECE_NBYTES + 1), (144, 16)]:
        out = np.full(count, 7, dtype=np.uint8)
        stream.read(offset, out)
        assert out.tobytes() == expected[offset : offset + count]


def test_slack_is_never_used_up():
    """The number of candidates to reject, before N are taken, exceeds the slack with a probability below 2**-100."""
    for degree in MAX_COEFF_MOD_BITS:
        step = 2 * degree
        for bits in (degree.bit_length() + 1, 20, 30, 45, 60):
            size = 1 << bits
            for part in (2**-16, 2**-10, 0.001, 0.004, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.49):
                modulus = (int(size * (1 - part)) - 1) // step * step + 1
                if modulus <= size // 2:
                    continue
                spare = slack(modulus, degree)
                assert spare % 8 == 0
                assert log2_of_too_few(degree, spare, 1 - modulus / size) < -100, (degree, modulus)
    assert slack(2**60 - 2**17 + 1, 4096) == 72


def log2_of_too_few(needed, spare, rejected):
    """A bound on log2 of the probability that more than `spare` of all candidates are rejected (Chernoff)."""
    count = needed + spare
    part = (spare + 1) / count
    if part <= rejected:
        return 0.0
    divergence = part * math.log2(part / rejected) + (1 - part) * math.log2((1 - part) / (1 - rejected))
    return -count * divergence
