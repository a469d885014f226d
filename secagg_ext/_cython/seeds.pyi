import numpy as np
from numpy.typing import NDArray

def add_samples(
    stream: NDArray[np.uint64], moduli: tuple[int, ...], n: int, slack: tuple[int, ...], acc: NDArray[np.uint64]
) -> int: ...
def replace_mask(
    c0: NDArray[np.uint64],
    c1: NDArray[np.uint64],
    mask: NDArray[np.uint64],
    secret: NDArray[np.uint64],
    moduli: tuple[int, ...],
    n: int,
) -> None: ...
