"""Which tensors are one in memory: NumPy's and torch's, views, and what only looks like it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from secagg.errors import LayoutError
from secagg.scheme.sharing import shared

ARRAY = np.arange(24, dtype=np.float32)
TENSOR = torch.arange(24, dtype=torch.float32)


def groups(**tensors):
    return shared(tensors)


@pytest.mark.parametrize("whole", [ARRAY, TENSOR], ids=["numpy", "torch"])
def test_one_tensor_of_several_names(whole):
    matrix = whole.reshape(4, 6)
    assert groups(a=matrix, x=matrix + 0, b=matrix[:], c=whole.reshape(4, 6)) == [("a", "b", "c"), ("x",)]


def test_torch_and_numpy_share_memory_too():
    assert groups(a=TENSOR, c=torch.nn.Parameter(TENSOR)) == [("a", "c")]
    assert groups(a=TENSOR, b=TENSOR.numpy()) == [("a", "b")]
    with pytest.raises(LayoutError, match="'a' and 'b' have a part of their memory in common"):
        groups(a=TENSOR, b=TENSOR.numpy()[1:])


@pytest.mark.parametrize("whole", [ARRAY, TENSOR], ids=["numpy", "torch"])
@pytest.mark.parametrize(
    "part",
    [
        lambda whole: whole[1:],
        lambda whole: whole[:-1],
        lambda whole: whole.reshape(4, 6),
        lambda whole: whole[5:6],
        lambda whole: whole[::2],
        lambda whole: whole[1::23],
    ],
    ids=["from 1", "to the last", "another shape", "one element", "every other", "two far apart"],
)
def test_a_part_in_common(whole, part):
    for first, second in ((whole, part(whole)), (part(whole), whole)):
        with pytest.raises(LayoutError, match="have a part of their memory in common"):
            groups(a=first, b=second)


def test_a_transposed_weight():
    matrix = TENSOR.reshape(4, 6)
    with pytest.raises(LayoutError, match="make them one tensor of one shape"):
        groups(encoder=matrix, decoder=matrix.t())
    square = TENSOR[:16].reshape(4, 4)
    with pytest.raises(LayoutError):
        groups(encoder=square, decoder=square.t())


def test_woven_and_adjacent_tensors_are_apart():
    """Rows of one buffer, real and imaginary parts, even and odd columns: nothing in common."""
    pairs = torch.zeros(4, 2)
    assert groups(re=pairs[:, 0], im=pairs[:, 1]) == [("re",), ("im",)]
    assert groups(even=ARRAY[::2], odd=ARRAY[1::2]) == [("even",), ("odd",)]
    rows = ARRAY.reshape(4, 6)
    assert groups(**{f"r{index}": row for index, row in enumerate(rows)}) == [("r0",), ("r1",), ("r2",), ("r3",)]
    assert groups(back=ARRAY[5::-1], rest=ARRAY[6:]) == [("back",), ("rest",)]


def test_what_has_no_place():
    """Empty tensors, and NumPy's scalars, of which two are often made at one address."""
    assert groups(a=ARRAY[:0], b=ARRAY[:0], c=TENSOR[:0]) == [("a",), ("b",), ("c",)]
    assert groups(**{f"s{index}": np.float32(0) for index in range(50)}) == [(f"s{index}",) for index in range(50)]


def test_expanded_and_reversed_tensors():
    one = torch.ones(1)
    assert groups(a=one.expand(5), b=one.expand(5)) == [("a", "b")]
    with pytest.raises(LayoutError):
        groups(a=one.expand(5), b=one)
    with pytest.raises(LayoutError):
        groups(a=ARRAY[::-1], b=ARRAY)


def test_dimensions_of_one_element_say_nothing():
    column = ARRAY.reshape(24, 1)
    assert groups(a=column, b=np.lib.stride_tricks.as_strided(column, (24, 1), (4, 999))) == [("a", "b")]


def test_what_only_differs_in_how_it_is_read():
    """Another byte order, another sign: other tensors, of the same memory."""
    little = np.ones(3, "<f4")
    with pytest.raises(LayoutError):
        groups(a=little, b=little.view(">f4"))
    whole = torch.complex(TENSOR, TENSOR)
    with pytest.raises(LayoutError):
        groups(a=whole.imag, b=whole.conj().imag)


def test_many_columns_of_one_matrix():
    """No two of them meet, and that is told by their addresses: each pair by itself took 7 µs."""
    matrix = np.zeros((4, 1500), np.float32)
    columns = {f"c{index}": matrix[:, index] for index in range(1500)}
    calls = []
    real = np.shares_memory
    np.shares_memory = lambda *arguments: calls.append(arguments) or real(*arguments)
    try:
        assert len(groups(**columns)) == 1500
        assert not calls
        with pytest.raises(LayoutError):
            groups(**columns, more=matrix[:, 7:9])
        assert calls
    finally:
        np.shares_memory = real


def test_more_views_than_anybody_can_compare(monkeypatch):
    monkeypatch.setattr("secagg.scheme.sharing._MAX_PAIRS", 100)
    matrix = np.zeros((4, 50), np.float32)
    with pytest.raises(LayoutError, match="so many tensors are views into the memory of"):
        groups(**{f"c{index}": matrix[:, index] for index in range(50)})
