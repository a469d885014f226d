"""Wrong arguments of `word_macs` are refused, by both implementations, before anything is written."""

from __future__ import annotations

import numpy as np
import pytest

MODULI = (2**60 - 93, 2**40)
N = 16
COUNTS = (2, 3)
PIECES = 3
SIZES = {"words": PIECES * 2 * N, "beta": 5 * N, "alpha": PIECES * 5, "state": 5}
SECRET = 123454321


def arrays(**changed):
    return {name: np.full(size, SECRET, np.uint64) for name, size in SIZES.items()} | changed


def call(ext, moduli=MODULI, n=N, counts=COUNTS, **changed):
    """Arguments of which some are wrong: they are refused, nothing is written, no message holds a secret."""
    given = arrays(**changed)
    with pytest.raises((TypeError, ValueError)) as caught:
        ext.word_macs(given["words"], moduli, n, counts, given["beta"], given["alpha"], given["state"])
    assert str(SECRET) not in str(caught.value)
    if "state" not in changed:
        assert given["state"].tolist() == [SECRET] * 5
    return caught


def frozen(array):
    array.flags.writeable = False
    return array


SHAPELESS = [
    pytest.param(lambda a: a.tolist(), TypeError, id="a list"),
    pytest.param(lambda a: a.tobytes(), TypeError, id="bytes"),
    pytest.param(lambda a: memoryview(a), TypeError, id="a memoryview"),
    pytest.param(lambda a: None, TypeError, id="none"),
    pytest.param(lambda a: a[0], TypeError, id="a scalar"),
    pytest.param(lambda a: a.astype(np.int64), TypeError, id="signed"),
    pytest.param(lambda a: a.astype(np.uint32), TypeError, id="narrow"),
    pytest.param(lambda a: a.astype(np.float64), TypeError, id="floats"),
    pytest.param(lambda a: a.astype(object), TypeError, id="objects"),
    pytest.param(lambda a: a.astype(a.dtype.newbyteorder()), TypeError, id="other byte order"),
    pytest.param(lambda a: a.reshape(-1, 1), ValueError, id="2-D"),
    pytest.param(lambda a: np.repeat(a, 2)[::2], ValueError, id="strided"),
    pytest.param(lambda a: a[::-1], ValueError, id="reversed"),
    pytest.param(lambda a: np.zeros(a.nbytes + 1, np.uint8)[1:].view(a.dtype), ValueError, id="unaligned"),
    pytest.param(lambda a: a[:-1], ValueError, id="too short"),
    pytest.param(lambda a: a[:0], ValueError, id="empty"),
    pytest.param(lambda a: np.append(a, a[:1]), ValueError, id="too long"),
    pytest.param(lambda a: np.append(a, a), ValueError, id="twice"),
]


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize(("wrong", "error"), SHAPELESS)
def test_arrays(ext, name, wrong, error):
    assert call(ext, **{name: wrong(arrays()[name])}).type is error


@pytest.mark.parametrize(
    ("moduli", "n", "error"),
    [
        pytest.param((), N, ValueError, id="no moduli"),
        pytest.param(list(MODULI), N, TypeError, id="a list of moduli"),
        pytest.param((2**60, 2.0**40), N, TypeError, id="a float modulus"),
        pytest.param((2**60, True), N, TypeError, id="a boolean modulus"),
        pytest.param((2**60, np.uint64(2**40)), N, TypeError, id="a NumPy modulus"),
        pytest.param((2**60, 1), N, ValueError, id="modulus 1"),
        pytest.param((2**60, 0), N, ValueError, id="modulus 0"),
        pytest.param((2**60, -5), N, ValueError, id="a negative modulus"),
        pytest.param((2**60, 2**60 + 1), N, ValueError, id="modulus over 2**60"),
        pytest.param((2**60, 2**64), N, ValueError, id="modulus 2**64"),
        pytest.param((2**60,), N, ValueError, id="fewer moduli than counts"),
        pytest.param(MODULI, 0, ValueError, id="n is 0"),
        pytest.param(MODULI, -8, ValueError, id="n is negative"),
        pytest.param(MODULI, 12, ValueError, id="n is no multiple of 8"),
        pytest.param(MODULI, 24, ValueError, id="n is another"),
        pytest.param(MODULI, 2**63, ValueError, id="n is over any index"),
        pytest.param(MODULI, 16.0, TypeError, id="n is a float"),
        pytest.param(MODULI, None, TypeError, id="n is none"),
    ],
)
def test_moduli_and_n(ext, moduli, n, error):
    assert call(ext, moduli=moduli, n=n).type is error


@pytest.mark.parametrize(
    ("counts", "error"),
    [
        ([2, 3], TypeError),
        (5, TypeError),
        (None, TypeError),
        ((2.0, 3), TypeError),
        ((2, None), TypeError),
        ((True, 4), TypeError),
        ((np.int64(2), 3), TypeError),
        ((), ValueError),
        ((5,), ValueError),
        ((2, 2, 1), ValueError),
        ((0, 5), ValueError),
        ((-1, 6), ValueError),
        ((2, 2), ValueError),
        ((2, 2**63), ValueError),
        ((2**64, 2**64), ValueError),
    ],
)
def test_counts(ext, counts, error):
    assert call(ext, counts=counts).type is error


def test_counts_over_any_index_without_pieces(ext):
    none = np.empty(0, np.uint64)
    call(ext, counts=(2, 2**64), words=none, alpha=none)


def test_a_read_only_state(ext):
    assert "state is read-only" in str(call(ext, state=frozen(arrays()["state"])).value)


@pytest.mark.parametrize("name", ["words", "beta", "alpha"])
def test_arrays_that_overlap(ext, name):
    size = SIZES[name]
    for begin in (0, 1, size - 5, size - 1):
        memory = np.full(size + 5, SECRET, np.uint64)
        caught = call(ext, **{name: memory[:size]}, state=memory[begin : begin + 5])
        assert str(caught.value) == f"state and {name} overlap in memory"
        assert (memory == SECRET).all()


def test_the_ends_of_the_ranges_are_taken(ext):
    """Neighbours do not overlap; what is only read may be read-only, and one array."""
    memory = np.ones(9, np.uint64)
    row, state = frozen(memory[:8]), memory[8:]
    ext.word_macs(row, (2**60,), 8, (1,), row, row[:1], state)
    assert state.tolist() == [9]
    ext.word_macs(row, (2,), 8, (1,), row, row[:1], state)
    assert state.tolist() == [1]
