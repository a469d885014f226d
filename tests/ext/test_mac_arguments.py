"""Wrong arguments of `poly_mac` are refused, by both implementations, before anything is written."""

from __future__ import annotations

import numpy as np
import pytest

P = 2**127 - 1
SECRET = 0x123456789ABCDEF_0FEDCBA987654321


def words(size=16):
    return np.arange(size, dtype=np.uint64)


def state(low=3, high=5):
    return np.array([low, high], np.uint64)


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
    pytest.param(lambda a: a.view(np.uint8), TypeError, id="as bytes"),
    pytest.param(lambda a: a.astype(np.float64), TypeError, id="floats"),
    pytest.param(lambda a: a.astype(object), TypeError, id="objects"),
    pytest.param(lambda a: a.astype(a.dtype.newbyteorder()), TypeError, id="other byte order"),
    pytest.param(lambda a: a.reshape(-1, 1), ValueError, id="2-D"),
    pytest.param(lambda a: np.array(7, np.uint64), ValueError, id="0-D"),
    pytest.param(lambda a: np.repeat(a, 2)[::2], ValueError, id="strided"),
    pytest.param(lambda a: a[::-1], ValueError, id="reversed"),
    pytest.param(lambda a: np.zeros(a.nbytes + 1, np.uint8)[1:].view(a.dtype), ValueError, id="unaligned"),
]


@pytest.mark.parametrize(("wrong", "error"), SHAPELESS)
def test_the_words(ext, wrong, error):
    total = state()
    with pytest.raises(error):
        ext.poly_mac(wrong(words()), SECRET, total)
    assert total.tolist() == [3, 5]


@pytest.mark.parametrize(("wrong", "error"), SHAPELESS)
def test_the_state(ext, wrong, error):
    with pytest.raises(error):
        ext.poly_mac(words(), SECRET, wrong(state()))


@pytest.mark.parametrize("size", [0, 1, 3, 4])
def test_a_state_of_another_size(ext, size):
    total = words(size)
    with pytest.raises(ValueError, match=f"state has {size} words, expected 2"):
        ext.poly_mac(words(), SECRET, total)
    assert total.tolist() == words(size).tolist()


def test_a_read_only_state(ext):
    total = frozen(state())
    with pytest.raises(ValueError, match="state is read-only"):
        ext.poly_mac(words(), SECRET, total)
    assert total.tolist() == [3, 5]


@pytest.mark.parametrize("number", [P, P + 1, 2**127 + 5, 2**128 - 1])
@pytest.mark.parametrize("size", [0, 16])
def test_a_state_that_is_not_below_the_prime(ext, number, size):
    total = state(number & 2**64 - 1, number >> 64)
    before = total.copy()
    with pytest.raises(ValueError, match="state must be below"):
        ext.poly_mac(words(size), SECRET, total)
    np.testing.assert_array_equal(total, before)


@pytest.mark.parametrize(
    "alpha", [None, 2.0, "2", b"2", True, np.uint64(2), np.int64(2), np.array([2], np.uint64), (2, 0)], ids=repr
)
def test_a_point_that_is_no_int(ext, alpha):
    total = state()
    with pytest.raises(TypeError, match="alpha must be an int, not"):
        ext.poly_mac(words(), alpha, total)
    assert total.tolist() == [3, 5]


@pytest.mark.parametrize("alpha", [-1, -P, P, P + 1, 2**128, 2**200])
@pytest.mark.parametrize("size", [0, 16])
def test_a_point_out_of_range(ext, alpha, size):
    total = state()
    with pytest.raises(ValueError, match=r"alpha must be at least 0 and below 2\*\*127 - 1"):
        ext.poly_mac(words(size), alpha, total)
    assert total.tolist() == [3, 5]


def test_the_ends_of_the_ranges_are_taken(ext):
    total = state(2**64 - 2, 2**63 - 1)
    ext.poly_mac(words(1), P - 1, total)
    assert total.tolist() == [1, 0]
    ext.poly_mac(words(1), 0, total)
    assert total.tolist() == [0, 0]


def test_messages_hold_no_secret(ext):
    """Neither the point nor the state may reach a log."""
    for arguments in [(words(), P + 12345, state()), (words(), SECRET, state(12345, 2**63)), (None, 12345, state())]:
        with pytest.raises((TypeError, ValueError)) as caught:
            ext.poly_mac(*arguments)
        assert "12345" not in str(caught.value)
        assert str(P + 12345) not in str(caught.value)


def test_arrays_that_overlap(ext):
    memory = np.arange(40, dtype=np.uint64)
    before = memory.copy()
    for begin in (0, 5, 15):
        with pytest.raises(ValueError, match="overlap"):
            ext.poly_mac(memory[:16], SECRET, memory[begin : begin + 2])
    np.testing.assert_array_equal(memory, before)


def test_neighbours_do_not_overlap(ext):
    memory = np.ones(18, np.uint64)
    ext.poly_mac(memory[:16], 1, memory[16:])
    assert memory[16:].tolist() == [17, 1]


def test_read_only_words_are_taken(ext):
    total = state(0, 0)
    ext.poly_mac(frozen(words()), 1, total)
    assert total.tolist() == [120, 0]
