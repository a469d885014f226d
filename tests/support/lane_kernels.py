"""What the tests of the lane kernels share: layouts, tensors, and calls with the usual arguments."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from hypothesis import strategies as st

CLARA = SimpleNamespace(n=8192, lanes=3, lane_bits=21, limit=2**15 - 1)
SMALL = SimpleNamespace(n=16, lanes=3, lane_bits=9, limit=127)
SLOTS = SMALL.n * SMALL.lanes
TENSOR = ["float16", "float32", "float64", "uint16"]  # uint16: bfloat16 bit patterns
HARD = [0.0, -0.0, 0.5, -0.5, 1.5, 2.5, -2.5, 0.25, 126.5, 127.0, -127.0, 127.5, 1e9, 6e-8, 5e-324]
NOT_FINITE = [np.inf, -np.inf, np.nan, 1.8e308]

seeds = st.integers(0, 2**64 - 1)
rest_seeds = st.none() | st.integers(0, 2**32)


@st.composite
def layouts(draw):
    """Words a block, lanes, their bits, and a limit that they have room for."""
    lanes = draw(st.integers(1, 16))
    lane_bits = draw(st.integers(2, 64 // lanes))
    most = 2 ** min(lane_bits - 1, 23) - 1
    limit = draw(st.sampled_from([1, most]) | st.integers(1, most))
    n = draw(st.sampled_from([8, 16, 72, 1024, 1032, 2048]))
    return SimpleNamespace(n=n, lanes=lanes, lane_bits=lane_bits, limit=limit)


@st.composite
def tensors(draw):
    """Some tensors: any bit pattern, or numbers around 1, or hard ones; longer than a compiled stretch now and then."""
    rng = np.random.default_rng(draw(seeds))
    made = []
    for dtype in draw(st.lists(st.sampled_from(TENSOR), max_size=4)):
        size = draw(st.integers(0, 20) | st.sampled_from([1023, 1024, 1025, 4000]))
        kind = draw(st.sampled_from(["bits", "normal", "hard"]))
        if kind == "bits":
            made.append(np.frombuffer(rng.bytes(size * np.dtype(dtype).itemsize), dtype))
        else:
            numbers = rng.standard_normal(size) if kind == "normal" else rng.choice(HARD + NOT_FINITE, size)
            made.append(cast(numbers, dtype))
    return made


@np.errstate(all="ignore")
def cast(numbers, dtype):
    """Numbers as a tensor; bfloat16 by cutting."""
    numbers = np.asarray(numbers)
    if dtype == "uint16":
        return (numbers.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return numbers.astype(dtype)


def doubles(tensor):
    if tensor.dtype == np.uint16:
        tensor = (tensor.astype(np.uint32) << 16).view(np.float32)
    return tensor.astype(np.float64)


def quantise(
    ext, layout, sources, start=0, blocks=None, factors=None, steps=None, caps=None, seed=None, residuals=None
):
    """Clipped values of each tensor, and words; by default all, at factor and step 1 and with the limit as cap."""
    if blocks is None:
        blocks = -(-sum(each.size for each in sources) // (layout.n * layout.lanes))
    out = np.full(blocks * layout.n, 0xAAAA_AAAA_AAAA_AAAA, np.uint64)
    factors = [1.0] * len(sources) if factors is None else factors
    steps = [1.0] * len(sources) if steps is None else steps
    caps = [float(layout.limit)] * len(sources) if caps is None else caps
    clipped = np.zeros(len(sources), np.int64)
    shape = (layout.n, layout.lanes, layout.lane_bits, layout.limit)
    ext.quantise(sources, out, *shape, start, factors, steps, caps, clipped, seed, residuals)
    return clipped.tolist(), out


def dequantise(ext, layout, words, targets, count=1, start=0, factors=None):
    """Where a sum of `count` words is over what it can be, or -1."""
    factors = [1.0] * len(targets) if factors is None else factors
    shape = (layout.n, layout.lanes, layout.lane_bits)
    top = layout.limit * count
    return ext.dequantise(words, targets, *shape, 2 * top, top, start, factors)


def lane_values(layout, words):
    """Lane values in the order of their positions, by Python's integers."""
    values = []
    for block in words.reshape(-1, layout.n).tolist():
        for lane in range(layout.lanes):
            values += [word >> lane * layout.lane_bits & (1 << layout.lane_bits) - 1 for word in block]
        assert all(word >> layout.lanes * layout.lane_bits == 0 for word in block)
    return values


def same_bits(left, right):
    assert left.dtype == right.dtype
    assert left.tobytes() == right.tobytes()
