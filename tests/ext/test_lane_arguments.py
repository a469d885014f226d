"""Wrong arguments of the lane kernels are refused, by both implementations, before anything is written."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

GOOD = {"n": 16, "lanes": 3, "lane_bits": 9, "start": 0}


def swapped(array):
    return array.astype(array.dtype.newbyteorder())


def unaligned(array):
    return np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype)


def frozen(array):
    array = array.copy()
    array.flags.writeable = False
    return array


WRONG_ARRAYS = [
    pytest.param(lambda a: a.tolist(), TypeError, id="a list"),
    pytest.param(lambda a: None, TypeError, id="none"),
    pytest.param(swapped, TypeError, id="other byte order"),
    pytest.param(lambda a: a.astype(np.int64), TypeError, id="integers"),
    pytest.param(lambda a: a.astype(object), TypeError, id="objects"),
    pytest.param(lambda a: a.reshape(-1, 1), ValueError, id="2-D"),
    pytest.param(lambda a: np.repeat(a, 2)[::2], ValueError, id="strided"),
    pytest.param(lambda a: a[::-1], ValueError, id="reversed"),
    pytest.param(unaligned, ValueError, id="unaligned"),
]

WRONG_LAYOUTS = [
    ({"n": 0}, ValueError),
    ({"n": -16}, ValueError),
    ({"n": 12}, ValueError),
    ({"n": 24}, ValueError),  # 32 words are not whole blocks
    ({"n": 2**64}, ValueError),
    ({"n": 16.0}, TypeError),
    ({"n": None}, TypeError),
    ({"lanes": 0}, ValueError),
    ({"lanes": -1}, ValueError),
    ({"lanes": 8}, ValueError),
    ({"lanes": 2**62}, ValueError),
    ({"lanes": True}, TypeError),
    ({"lane_bits": 0}, ValueError),
    ({"lane_bits": -9}, ValueError),
    ({"lane_bits": 22}, ValueError),
    ({"lane_bits": 2**62}, ValueError),
    ({"lane_bits": np.int64(9)}, TypeError),
    ({"start": -1}, ValueError),
    ({"start": 2**63 - 96}, ValueError),
    ({"start": 2**70}, ValueError),
    ({"start": 0.0}, TypeError),
    ({"start": None}, TypeError),
]

WRONG_FACTORS = [
    ([1.0], ValueError),
    ([1.0] * 3, ValueError),
    ([1.0, np.nan], ValueError),
    ([1.0, -np.inf], ValueError),
    ([1.0, 10**400], ValueError),
    ([1.0, "1"], TypeError),
    ([1.0, None], TypeError),
    ([1.0, 2j], TypeError),
    (1.0, TypeError),
    (None, TypeError),
]


@pytest.fixture(params=[False, True], ids=["plain", "residuals"])
def refused(ext, request):
    """Functions that check that `quantise` and `dequantise` refuse some changed argument, and write nothing."""

    def quantise(error, **changed):
        sources, out = [np.full(30, 2.0, np.float32), np.full(9, 2.0)], np.full(32, 7, np.uint64)
        rests = [np.full(30, 5, np.float32), np.full(9, 5, np.float32)]
        arguments = {"sources": sources, "out": out, **GOOD, "limit": 127, "factors": [1.0, 1.0], "steps": [1.0, 0.5]}
        arguments |= {"caps": [127.0, 1.0], "clipped": (clipped := np.full(2, 3, np.int64))}
        arguments |= {"residuals": rests} if request.param else {}
        with pytest.raises(error):
            ext.quantise(**arguments | changed)
        assert (out == 7).all()
        assert (clipped == 3).all()
        assert all((rest == 5).all() for rest in rests)

    def dequantise(error, **changed):
        words, targets = np.full(32, 3, np.uint64), [np.full(30, 2.0, np.float32), np.full(9, 2.0)]
        arguments = {"words": words, "targets": targets, **GOOD, "largest": 254, "offset": 127, "factors": [1.0, 1.0]}
        with pytest.raises(error):
            ext.dequantise(**arguments | changed)
        assert all((target == 2).all() for target in targets)

    return SimpleNamespace(quantise=quantise, dequantise=dequantise)


@pytest.mark.parametrize(("wrong", "error"), WRONG_LAYOUTS)
def test_layouts(refused, wrong, error):
    refused.quantise(error, **wrong)
    refused.dequantise(error, **wrong)


@pytest.mark.parametrize(("wrong", "error"), WRONG_ARRAYS)
def test_words(refused, wrong, error):
    refused.quantise(error, out=wrong(np.full(32, 7, np.uint64)))
    refused.dequantise(error, words=wrong(np.full(32, 3, np.uint64)))


@pytest.mark.parametrize(("wrong", "error"), WRONG_ARRAYS)
def test_tensors(refused, wrong, error):
    good = np.full(30, 2.0, np.float32)
    refused.quantise(error, sources=[good, wrong(np.full(9, 2.0))])
    refused.dequantise(error, targets=[good, wrong(np.full(9, 2.0))])
    assert (good == 2).all()


@pytest.mark.parametrize("tensors", [np.ones(2), iter([np.ones(3), np.ones(3)]), None, 3, {"a": np.ones(3), "b": None}])
def test_tensors_are_sequences_of_arrays(refused, tensors):
    refused.quantise(TypeError, sources=tensors)
    refused.dequantise(TypeError, targets=tensors)
    if tensors is not None:
        refused.quantise(TypeError, residuals=tensors)


@pytest.mark.parametrize(("wrong", "error"), WRONG_FACTORS)
def test_factors(refused, wrong, error):
    refused.quantise(error, factors=wrong)
    refused.dequantise(error, factors=wrong)
    refused.quantise(error, caps=wrong)
    refused.quantise(error, steps=wrong)


@pytest.mark.parametrize("step", [0.0, -0.0, -1.0, 5e-324, 2.0**-1024, np.float32(0)])
def test_steps(refused, step):
    refused.quantise(ValueError, steps=[1.0, step])


def test_the_smallest_and_the_largest_step(ext):
    for step in (2.0**-1023, 1.7976931348623157e308, 10**300, np.float32(1e-45)):
        out, rest = np.zeros(8, np.uint64), np.zeros(1, np.float32)
        clipped = np.zeros(1, np.int64)
        ext.quantise([np.ones(1)], out, 8, 1, 9, 127, 0, [float(step)], [step], [127.0], clipped, None, [rest])
        assert (out[0], clipped[0], rest[0]) == (128, 0, 0)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        pytest.param(lambda a: a.astype(np.int32), TypeError, id="int32"),
        pytest.param(lambda a: a.astype(np.uint64), TypeError, id="uint64"),
        pytest.param(lambda a: a.astype(np.float64), TypeError, id="floats"),
        pytest.param(lambda a: a[:-1], ValueError, id="too short"),
        pytest.param(lambda a: np.append(a, a), ValueError, id="too long"),
        pytest.param(frozen, ValueError, id="read-only"),
        *(each for each in WRONG_ARRAYS if each.id != "integers"),
    ],
)
def test_counts(refused, wrong, error):
    refused.quantise(error, clipped=wrong(np.full(2, 3, np.int64)))


@pytest.mark.parametrize("cap", [-1.0, -5e-324, 127.001, 127 * (1 + 2**-39)])
def test_caps(refused, cap):
    refused.quantise(ValueError, caps=[1.0, cap])


@pytest.mark.parametrize(
    ("limit", "error"),
    [(0, ValueError), (-1, ValueError), (256, ValueError), (2**23, ValueError), (127.0, TypeError), (True, TypeError)],
)
def test_limits(refused, limit, error):
    refused.quantise(error, limit=limit, caps=[0.0, 0.0])


def test_a_limit_needs_its_lane_bits(ext):
    out, source, clipped = np.zeros(8, np.uint64), np.ones(1), np.zeros(1, np.int64)
    for limit, lane_bits in ((1, 2), (127, 8), (2**23 - 1, 24), (2**23 - 1, 64)):
        ext.quantise([source], out, 8, 1, lane_bits, limit, 0, [1.0], [1.0], [float(limit)], clipped)
        assert out[0] == limit + 1
    for limit, lane_bits in ((1, 1), (128, 8), (2**23 - 1, 23), (2**23, 64)):
        with pytest.raises(ValueError, match="limit"):
            ext.quantise([source], out, 8, 1, lane_bits, limit, 0, [1.0], [1.0], [1.0], clipped)


@pytest.mark.parametrize(
    ("seed", "error"),
    [
        (-1, ValueError),
        (2**64, ValueError),
        (1.0, TypeError),
        ("1", TypeError),
        (True, TypeError),
        (b"12345678", TypeError),
    ],
)
def test_seeds(refused, seed, error):
    refused.quantise(error, seed=seed)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"largest": -1}, ValueError),
        ({"largest": 512}, ValueError),
        ({"largest": 254.0}, TypeError),
        ({"largest": 2**53 + 1, "lanes": 1, "lane_bits": 64}, ValueError),
        ({"offset": -1}, ValueError),
        ({"offset": 2**53 + 1}, ValueError),
        ({"offset": None}, TypeError),
    ],
)
def test_sums(refused, wrong, error):
    refused.dequantise(error, **wrong)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        pytest.param(lambda a: a.astype(np.float64), TypeError, id="float64"),
        pytest.param(lambda a: a.astype(np.float16), TypeError, id="float16"),
        pytest.param(lambda a: a[:-1], ValueError, id="too short"),
        pytest.param(lambda a: np.append(a, a), ValueError, id="too long"),
        pytest.param(frozen, ValueError, id="read-only"),
        *WRONG_ARRAYS,
    ],
)
def test_residuals(refused, wrong, error):
    good = np.full(30, 2.0, np.float32)
    refused.quantise(error, residuals=[good, wrong(np.full(9, 5, np.float32))])
    refused.quantise(ValueError, residuals=[good])
    assert (good == 2).all()


def test_read_only_outputs(refused):
    refused.quantise(ValueError, out=frozen(np.zeros(32, np.uint64)))
    good = np.full(30, 2.0)
    refused.dequantise(ValueError, targets=[good, frozen(np.ones(9))])
    assert (good == 2).all()


def test_arrays_that_overlap(ext):
    memory = np.arange(64, dtype=np.uint64)
    before = memory.copy()
    singles, doubles = memory.view(np.float32), memory.view(np.float64)
    counts = np.zeros(2, np.int64)
    good = {**GOOD, "limit": 127, "caps": [1.0, 1.0], "factors": [1.0, 1.0], "steps": [1.0, 1.0], "clipped": counts}
    out, one, rest = np.zeros(32, np.uint64), np.ones(1), np.zeros(1, np.float32)
    longer = np.zeros(20, np.float32)
    pair, apart = [singles[:8], singles[20:28]], [singles[40:48], singles[50:58]]
    for arguments in (
        {"sources": [one, doubles[31:40]], "out": memory[:32]},
        {"sources": [one, doubles[31:40]], "out": out, "clipped": memory[30:32].view(np.int64)},
        {"sources": [one, one], "out": memory[:32], "clipped": memory[31:33].view(np.int64)},
        {"sources": pair, "out": out, "residuals": apart, "clipped": memory[27:29].view(np.int64)},
        {"sources": pair, "out": out, "residuals": [singles[40:48], singles[27:35]]},
        {"sources": pair, "out": out, "residuals": [singles[20:28], singles[40:48]]},
        {"sources": pair, "out": out, "residuals": [singles[40:48], singles[47:55]]},
        {"sources": [one, one], "out": memory[:32], "residuals": [rest, singles[63:64]]},
        {"sources": [singles[:20], singles[10:11]], "out": out, "residuals": [longer, singles[19:20]]},
    ):
        with pytest.raises(ValueError, match="overlap"):
            ext.quantise(**good | arguments)
    with pytest.raises(ValueError, match="overlap"):
        ext.dequantise(memory[:32], [one, doubles[31:40]], **GOOD, largest=254, offset=0, factors=[1.0, 1.0])
    np.testing.assert_array_equal(memory, before)
    assert not out.any()
    assert not counts.any()


def test_neighbours_do_not_overlap(ext):
    singles = np.zeros(128, np.float32)
    out, clipped = singles[:64].view(np.uint64), singles[86:90].view(np.int64)
    good = {**GOOD, "limit": 127, "factors": [1, 1], "steps": [1, 1], "caps": [1, 1], "clipped": clipped}
    sources, rests = [singles[64:72], singles[64:70]], [singles[72:80], singles[80:86]]
    ext.quantise(sources, out, **good, residuals=rests)
    empty = singles[68:68]  # no byte, so nothing to share
    ext.quantise([sources[0], empty], out, **good, residuals=[rests[0], empty])
    assert out.any()
    assert not clipped.any()
