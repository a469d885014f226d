"""Wrong arguments of the `seeds` kernels are refused, by both implementations, before anything is written."""

from __future__ import annotations

import numpy as np
import pytest

MODULI = (2**60 - 93, 2**40)
N = 16
SLACK = (8, 0)
STREAM = 24 + 16  # words a block


def words(size=2 * N, dtype=np.uint64):
    return np.zeros(size, dtype)


def stream(size=STREAM, dtype=np.uint64):
    return np.zeros(size, dtype)


def frozen(array):
    array.flags.writeable = False
    return array


SHAPELESS_BYTES = [
    pytest.param(lambda a: a.tolist(), TypeError, id="a list"),
    pytest.param(lambda a: a.tobytes(), TypeError, id="bytes"),
    pytest.param(lambda a: None, TypeError, id="none"),
    pytest.param(lambda a: a.astype(np.int64), TypeError, id="integers"),
    pytest.param(lambda a: a.astype(np.float64), TypeError, id="floats"),
    pytest.param(lambda a: a.astype(object), TypeError, id="objects"),
    pytest.param(lambda a: a.reshape(-1, 1), ValueError, id="2-D"),
    pytest.param(lambda a: np.repeat(a, 2)[::2], ValueError, id="strided"),
    pytest.param(lambda a: a[::-1], ValueError, id="reversed"),
    pytest.param(lambda a: a[:-8], ValueError, id="too short"),
    pytest.param(lambda a: a[:0], ValueError, id="empty"),
    pytest.param(lambda a: np.append(a, a[:1]), ValueError, id="too long"),
    pytest.param(lambda a: np.append(a, a), ValueError, id="two blocks"),
]
SHAPELESS = [  # a byte has neither order nor alignment
    *SHAPELESS_BYTES,
    pytest.param(lambda a: a.astype(a.dtype.newbyteorder()), TypeError, id="other byte order"),
    pytest.param(lambda a: np.zeros(a.nbytes + 1, np.uint8)[1:].view(a.dtype), ValueError, id="unaligned"),
]

BAD_MODULI = [
    pytest.param((), N, ValueError, id="no moduli"),
    pytest.param(list(MODULI), N, TypeError, id="a list of moduli"),
    pytest.param((2**60, 2.0**40), N, TypeError, id="a float modulus"),
    pytest.param((2**60, True), N, TypeError, id="a boolean modulus"),
    pytest.param((2**60, np.uint64(2**40)), N, TypeError, id="a NumPy modulus"),
    pytest.param((2**60, 1), N, ValueError, id="modulus 1"),
    pytest.param((2**60, 0), N, ValueError, id="modulus 0"),
    pytest.param((2**60, -5), N, ValueError, id="a negative modulus"),
    pytest.param((2**60, 2**61 + 1), N, ValueError, id="modulus over 2**61"),
    pytest.param((2**64, 2**40), N, ValueError, id="modulus 2**64"),
    pytest.param(MODULI, 0, ValueError, id="n is 0"),
    pytest.param(MODULI, -8, ValueError, id="n is negative"),
    pytest.param(MODULI, 12, ValueError, id="n is no multiple of 8"),
    pytest.param(MODULI, 2**63, ValueError, id="n is over any index"),
    pytest.param(MODULI, 16.0, TypeError, id="n is a float"),
    pytest.param(MODULI, None, TypeError, id="n is none"),
    pytest.param(MODULI, True, TypeError, id="n is a boolean"),
]


@pytest.mark.parametrize(("moduli", "n", "error"), BAD_MODULI)
def test_moduli_and_n(ext, moduli, n, error):
    acc, c0 = words() + 3, words() + 3
    with pytest.raises(error):
        ext.add_samples(stream(), moduli, n, SLACK, acc)
    with pytest.raises(error):
        ext.replace_mask(c0, words() + 2, words() + 1, words() + 1, moduli, n)
    assert (acc == 3).all()
    assert (c0 == 3).all()


@pytest.mark.parametrize(
    ("slack", "error"),
    [
        ([8, 0], TypeError),
        (8, TypeError),
        (None, TypeError),
        ((8.0, 0), TypeError),
        ((8, None), TypeError),
        ((8, False), TypeError),
        ((np.int64(8), 0), TypeError),
        ((), ValueError),
        ((8,), ValueError),
        ((8, 0, 0), ValueError),
        ((-8, 24), ValueError),
        ((4, 6), ValueError),
        ((12, 0), ValueError),
        ((0, 0), ValueError),
        ((8, 8), ValueError),
        ((16, 0), ValueError),
        ((8, 2**63), ValueError),
    ],
)
def test_slack(ext, slack, error):
    acc = words() + 3
    with pytest.raises(error):
        ext.add_samples(stream() + 1, MODULI, N, slack, acc)
    assert (acc == 3).all()


def test_slack_over_any_index_without_blocks(ext):
    with pytest.raises(ValueError, match="slack"):
        ext.add_samples(stream(0), MODULI, N, (8, 2**64), words(0))


@pytest.mark.parametrize(("wrong", "error"), SHAPELESS_BYTES)
def test_the_stream(ext, wrong, error):
    acc = words() + 3
    with pytest.raises(error):
        ext.add_samples(wrong(stream() + 1), MODULI, N, SLACK, acc)
    assert (acc == 3).all()


@pytest.mark.parametrize(("wrong", "error"), SHAPELESS)
def test_the_words_of_acc(ext, wrong, error):
    with pytest.raises(error):
        ext.add_samples(stream(), MODULI, N, SLACK, wrong(words()))


@pytest.mark.parametrize("place", range(1, 4))
@pytest.mark.parametrize(("wrong", "error"), SHAPELESS)
def test_the_words_of_a_mask(ext, wrong, error, place):
    arrays = [words() + value for value in (3, 2, 1, 1)]
    c0 = arrays[0]
    arrays[place] = wrong(arrays[place])
    with pytest.raises(error):
        ext.replace_mask(*arrays, MODULI, N)
    assert (c0 == 3).all()


@pytest.mark.parametrize(("wrong", "error"), SHAPELESS)
def test_the_words_of_c0(ext, wrong, error):
    with pytest.raises(error):
        ext.replace_mask(wrong(words()), words(), words(), words() + 1, MODULI, N)


def test_read_only_outputs(ext):
    with pytest.raises(ValueError, match="acc is read-only"):
        ext.add_samples(stream() + 1, MODULI, N, SLACK, frozen(words()))
    with pytest.raises(ValueError, match="c0 is read-only"):
        ext.replace_mask(frozen(words()), words() + 1, words(), words() + 1, MODULI, N)


def test_arrays_that_overlap(ext):
    memory = np.ones(80, np.uint64)
    before = memory.copy()
    with pytest.raises(ValueError, match="overlap"):
        ext.add_samples(memory[31 : 31 + STREAM], MODULI, N, SLACK, memory[:32])
    for place in range(3):
        others = [words() + 1 for _ in range(3)]
        others[place] = memory[31:63]
        with pytest.raises(ValueError, match="overlap"):
            ext.replace_mask(memory[:32], *others, MODULI, N)
    np.testing.assert_array_equal(memory, before)


def test_neighbours_do_not_overlap(ext):
    memory = np.zeros(32 + STREAM, np.uint64)
    assert ext.add_samples(memory[32:], MODULI, N, SLACK, memory[:32]) == -1
