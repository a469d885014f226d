import numpy as np
from numpy.typing import NDArray

def poly_mac(words: NDArray[np.uint64], alpha: int, state: NDArray[np.uint64]) -> None: ...
