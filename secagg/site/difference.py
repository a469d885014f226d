"""What training has changed in a tensor, torch's or NumPy's, of any dtype, against the global model as it is held."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import LayoutError
from ..scheme.tensors import to_array


def is_float(array: NDArray[Any]) -> bool:
    """Return whether an array is of floats, which are aggregated; others are each site's own."""
    return array.dtype.kind == "f"


def difference(name: str, value: Any, start: NDArray[Any]) -> NDArray[Any]:
    """Return (local − global) of a float tensor, as the global model is held; of another one a copy of the local one.

    Parameters
    ----------
    name : str
        For messages.
    value : torch.Tensor or numpy.ndarray
        The local tensor.
    start : ndarray
        The global one, as of `held`.

    Raises
    ------
    LayoutError
        If the local tensor is of another shape or kind, or an integer one whose values do not fit.
    """
    dtype, local = to_array(name, value)
    if local.shape != start.shape or is_float(local) != is_float(start):
        raise LayoutError(
            f"tensor {name!r} is {dtype}{list(local.shape)} after training; the global model has "
            f"{start.dtype}{list(start.shape)}"
        )
    if not is_float(start):
        own = local.astype(start.dtype)
        if not np.array_equal(own, local):
            raise LayoutError(f"tensor {name!r} is {dtype} after training, and has values that {start.dtype} has not")
        return own
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused when it is encrypted
        return np.asarray(local.astype(start.dtype) - _rounded(start, dtype).astype(start.dtype))


def _rounded(array: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return an array as a network of a dtype holds it; torch casts to 16 bits by way of float32."""
    if dtype == "float16":
        return array.astype(np.float32).astype(np.float16)
    if dtype == "bfloat16":
        bits = array.astype(np.float32).reshape(-1).view(np.uint32)
        rounded = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000  # to the nearest, ties to even
        return rounded.view(np.float32).reshape(array.shape)
    return array.astype(dtype, copy=False)
