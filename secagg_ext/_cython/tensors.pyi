from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

def flatten(
    sources: Sequence[NDArray[Any]],
    out: NDArray[Any],
    start: int = 0,
    factor: float = 1.0,
    bounds: Sequence[float] | None = None,
) -> int: ...
def scatter(vector: NDArray[Any], targets: Sequence[NDArray[Any]], start: int = 0, factor: float = 1.0) -> None: ...
def first_out_of_range(source: NDArray[Any], bound: float) -> int: ...
def weigh(source: NDArray[Any], factor: float, residual: NDArray[np.float32] | None = None) -> tuple[float, float]: ...
