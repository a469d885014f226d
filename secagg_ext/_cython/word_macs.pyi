import numpy as np
from numpy.typing import NDArray

def word_macs(
    words: NDArray[np.uint64],
    moduli: tuple[int, ...],
    n: int,
    counts: tuple[int, ...],
    beta: NDArray[np.uint64],
    alpha: NDArray[np.uint64],
    state: NDArray[np.uint64],
) -> None: ...
