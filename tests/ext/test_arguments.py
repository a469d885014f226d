"""Wrong arguments are refused, by both implementations, before anything is written."""

from __future__ import annotations

import numpy as np
import pytest

MODULI = (2**60 - 93, 2**40)
N = 16
BLOCK = 200  # bytes: 16 words of 60 bits, 16 of 40


def words(size=2 * N, dtype=np.uint64):
    return np.zeros(size, dtype)


def packed(size=BLOCK, dtype=np.uint8):
    return np.zeros(size, dtype)


def strided(array):
    return np.repeat(array, 2)[::2]


def unaligned(array):
    raw = np.zeros(array.nbytes + 1, np.uint8)[1:]
    return raw.view(array.dtype)


def frozen(array):
    array.flags.writeable = False
    return array


def swapped(array):
    return array.astype(array.dtype.newbyteorder())


SHAPELESS = [
    pytest.param(lambda a: a.tolist(), TypeError, id="a list"),
    pytest.param(lambda a: a.tobytes(), TypeError, id="bytes"),
    pytest.param(lambda a: None, TypeError, id="none"),
    pytest.param(swapped, TypeError, id="other byte order"),
    pytest.param(lambda a: a.astype(np.int64), TypeError, id="integers"),
    pytest.param(lambda a: a.astype(object), TypeError, id="objects"),
    pytest.param(lambda a: a.astype(bool), TypeError, id="booleans"),
    pytest.param(lambda a: a.reshape(-1, 1), ValueError, id="2-D"),
    pytest.param(lambda a: a[:1].reshape(()), ValueError, id="0-D"),
    pytest.param(strided, ValueError, id="strided"),
    pytest.param(lambda a: a[::-1], ValueError, id="reversed"),
    pytest.param(unaligned, ValueError, id="unaligned"),
]
# A byte has neither order nor alignment.
SHAPELESS_BYTES = [case for case in SHAPELESS if case.id not in ("other byte order", "unaligned")]

BAD_MODULI = [
    pytest.param((), N, ValueError, id="no moduli"),
    pytest.param(list(MODULI), N, TypeError, id="a list of moduli"),
    pytest.param((2**60, 2.0**40), N, TypeError, id="a float modulus"),
    pytest.param((2**60, True), N, TypeError, id="a boolean modulus"),
    pytest.param((2**60, np.uint64(2**40)), N, TypeError, id="a NumPy modulus"),
    pytest.param((2**60, 1), N, ValueError, id="modulus 1"),
    pytest.param((2**60, 0), N, ValueError, id="modulus 0"),
    pytest.param((2**60, -5), N, ValueError, id="a negative modulus"),
    pytest.param((2**60, 2**64 + 1), N, ValueError, id="modulus over 2**64"),
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
    out, full = packed() + 3, words() + 3
    for call in (
        lambda: ext.block_nbytes(moduli, n),
        lambda: ext.pack_words(words(), moduli, n, out),
        lambda: ext.unpack_words(packed(), moduli, n, full),
        lambda: ext.check_words(packed(), moduli, n),
        lambda: ext.add_words(out, packed() + 1, moduli, n),
    ):
        with pytest.raises(error):
            call()
    assert (out == 3).all()
    assert (full == 3).all()


@pytest.mark.parametrize(("wrong", "error"), SHAPELESS)
def test_words_of_pack_and_unpack(ext, wrong, error):
    out = packed() + 3
    with pytest.raises(error):
        ext.pack_words(wrong(words()), MODULI, N, out)
    assert (out == 3).all()
    with pytest.raises(error):
        ext.unpack_words(packed(), MODULI, N, wrong(words()))


@pytest.mark.parametrize(("wrong", "error"), SHAPELESS_BYTES)
def test_packed_bytes(ext, wrong, error):
    full, acc = words() + 3, packed() + 3
    for call in (
        lambda: ext.pack_words(words(), MODULI, N, wrong(packed())),
        lambda: ext.unpack_words(wrong(packed()), MODULI, N, full),
        lambda: ext.check_words(wrong(packed()), MODULI, N),
        lambda: ext.add_words(acc, wrong(packed() + 1), MODULI, N),
        lambda: ext.add_words(wrong(packed()), packed(), MODULI, N),
    ):
        with pytest.raises(error):
            call()
    assert (full == 3).all()
    assert (acc == 3).all()


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK + 1, 2 * BLOCK])
def test_lengths_that_do_not_match(ext, size):
    out, full, acc = packed(size) + 3, words() + 3, packed() + 3
    with pytest.raises(ValueError, match="block"):
        ext.pack_words(words(), MODULI, N, out)
    with pytest.raises(ValueError, match="block"):
        ext.unpack_words(packed(size), MODULI, N, full)
    with pytest.raises(ValueError, match="block"):
        ext.add_words(acc, packed(size) + 1, MODULI, N)
    if size % BLOCK:
        with pytest.raises(ValueError, match="block"):
            ext.check_words(packed(size), MODULI, N)
        with pytest.raises(ValueError, match="block"):
            ext.add_words(packed(size), packed(size), MODULI, N)
    for array in (out, full, acc):
        assert (array == 3).all()


@pytest.mark.parametrize("size", [0, 2 * N - 1, 2 * N + 1, 4 * N])
def test_numbers_of_words_that_do_not_match(ext, size):
    out, full = packed() + 3, words(size) + 3
    with pytest.raises(ValueError, match="32 words"):
        ext.pack_words(full, MODULI, N, out)
    with pytest.raises(ValueError, match="32 words"):
        ext.unpack_words(packed(), MODULI, N, full)
    assert (out == 3).all()
    assert (full == 3).all()


def test_read_only_outputs(ext):
    with pytest.raises(ValueError, match="read-only"):
        ext.pack_words(words() + 5, MODULI, N, frozen(packed()))
    with pytest.raises(ValueError, match="read-only"):
        ext.unpack_words(packed() + 5, MODULI, N, frozen(words()))
    with pytest.raises(ValueError, match="read-only"):
        ext.add_words(frozen(packed()), packed() + 5, MODULI, N)
    with pytest.raises(ValueError, match="read-only"):
        ext.flatten([np.ones(3)], frozen(np.zeros(3)))
    good, bad = np.zeros(2), frozen(np.zeros(2))
    with pytest.raises(ValueError, match="read-only"):
        ext.scatter(np.ones(4), [good, bad])
    assert not good.any()


def test_arrays_that_overlap(ext):
    memory = np.arange(400, dtype=np.uint8)
    before = memory.copy()
    with pytest.raises(ValueError, match="overlap"):
        ext.add_words(memory[:BLOCK], memory[BLOCK - 1 : 2 * BLOCK - 1], MODULI, N)
    with pytest.raises(ValueError, match="overlap"):
        ext.add_words(memory[:BLOCK], memory[:BLOCK], MODULI, N)
    with pytest.raises(ValueError, match="overlap"):
        ext.pack_words(memory[:256].view(np.uint64), MODULI, N, memory[:BLOCK])
    with pytest.raises(ValueError, match="overlap"):
        ext.unpack_words(memory[:BLOCK], MODULI, N, memory[:256].view(np.uint64))
    doubles = memory.view(np.float64)
    with pytest.raises(ValueError, match="overlap"):
        ext.flatten([np.ones(2), doubles[5:10]], doubles[:6])
    with pytest.raises(ValueError, match="overlap"):
        ext.scatter(doubles[:6], [np.ones(2), doubles[5:10]])
    np.testing.assert_array_equal(memory, before)


def test_neighbours_do_not_overlap(ext):
    memory = np.zeros(2 * BLOCK, np.uint8)
    ext.add_words(memory[:BLOCK], memory[BLOCK:], MODULI, N)
    numbers = np.arange(4.0)
    ext.flatten([numbers[2:]], numbers[:2])
    assert numbers.tolist() == [2, 3, 2, 3]


@pytest.mark.parametrize(("wrong", "error"), SHAPELESS)
def test_tensors(ext, wrong, error):
    good, out = np.ones(4, np.float32), np.full(8, 3.0)
    with pytest.raises(error):
        ext.flatten([good, wrong(good)], out)
    assert (out == 3).all()
    with pytest.raises(error):
        ext.first_out_of_range(wrong(good), 1.0)
    with pytest.raises(error):
        ext.scatter(out, [good, wrong(good)])
    assert (good == 1).all()


@pytest.mark.parametrize(("wrong", "error"), SHAPELESS)
def test_vectors(ext, wrong, error):
    tensor = np.ones(4, np.float32)
    with pytest.raises(error):
        ext.flatten([tensor], wrong(np.zeros(4)))
    with pytest.raises(error):
        ext.scatter(wrong(np.zeros(4)), [tensor])
    assert (tensor == 1).all()


@pytest.mark.parametrize("dtype", ["float16", "uint16", "complex64", "longdouble", "uint8"])
def test_dtypes_that_are_no_vector(ext, dtype):
    with pytest.raises(TypeError, match="dtype"):
        ext.flatten([np.ones(4)], np.zeros(4, dtype))
    with pytest.raises(TypeError, match="dtype"):
        ext.scatter(np.zeros(4, dtype), [np.ones(4)])


@pytest.mark.parametrize("dtype", ["complex64", "complex128", "longdouble", "int16", "uint32"])
def test_dtypes_that_are_no_tensor(ext, dtype):
    with pytest.raises(TypeError, match="dtype"):
        ext.flatten([np.ones(4, dtype)], np.zeros(4))
    with pytest.raises(TypeError, match="dtype"):
        ext.scatter(np.zeros(4), [np.ones(4, dtype)])
    with pytest.raises(TypeError, match="dtype"):
        ext.first_out_of_range(np.ones(4, dtype), 1.0)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"start": -1}, ValueError),
        ({"start": 2**63 - 1}, ValueError),
        ({"start": 2**70}, ValueError),
        ({"start": 1.0}, TypeError),
        ({"start": None}, TypeError),
        ({"factor": np.nan}, ValueError),
        ({"factor": np.inf}, ValueError),
        ({"factor": -np.inf}, ValueError),
        ({"factor": "2"}, TypeError),
        ({"factor": 2j}, TypeError),
        ({"factor": None}, TypeError),
    ],
)
def test_start_and_factor(ext, wrong, error):
    tensor, out = np.ones(4), np.full(4, 3.0)
    with pytest.raises(error):
        ext.flatten([tensor], out, **wrong)
    with pytest.raises(error):
        ext.scatter(out, [tensor], **wrong)
    assert (out == 3).all()
    assert (tensor == 1).all()


@pytest.mark.parametrize(
    ("bounds", "error"),
    [
        ([], ValueError),
        ([1.0], ValueError),
        ([1.0, 1.0, 1.0], ValueError),
        ([1.0, -1.0], ValueError),
        ([1.0, np.nan], ValueError),
        ([1.0, "1"], TypeError),
        ([1.0, None], TypeError),
        (1.0, TypeError),
    ],
)
def test_bounds(ext, bounds, error):
    out = np.full(4, 3.0)
    with pytest.raises(error):
        ext.flatten([np.ones(2), np.ones(2)], out, bounds=bounds)
    assert (out == 3).all()


@pytest.mark.parametrize(("bound", "error"), [(-1.0, ValueError), (np.nan, ValueError), ("1", TypeError)])
def test_bound(ext, bound, error):
    with pytest.raises(error):
        ext.first_out_of_range(np.ones(2), bound)


@pytest.mark.parametrize("sources", [np.ones(3), iter([np.ones(3)]), None, 3, "abc", {"a": np.ones(3)}])
def test_sources_and_targets_are_sequences_of_arrays(ext, sources):
    out = np.full(3, 3.0)
    with pytest.raises(TypeError):
        ext.flatten(sources, out)
    with pytest.raises(TypeError):
        ext.scatter(out, sources)
    assert (out == 3).all()
