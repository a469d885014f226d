from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

def quantise(
    sources: Sequence[NDArray[Any]],
    out: NDArray[np.uint64],
    n: int,
    lanes: int,
    lane_bits: int,
    limit: int,
    start: int,
    factors: Sequence[float],
    steps: Sequence[float],
    caps: Sequence[float],
    clipped: NDArray[np.int64],
    seed: int | None = None,
    residuals: Sequence[NDArray[np.float32]] | None = None,
) -> None: ...
def dequantise(
    words: NDArray[np.uint64],
    targets: Sequence[NDArray[Any]],
    n: int,
    lanes: int,
    lane_bits: int,
    largest: int,
    offset: int,
    start: int,
    factors: Sequence[float],
) -> int: ...
