"""What of a network is a site's own: integer and bool tensors, and what the configuration keeps there (``stay``).

The first are checked against the global model; the others may be anything, also no tensors at all.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FormatError, LayoutError, StateError
from ..scheme.tensors import FLOAT_DTYPES, LOCAL_DTYPES, describe, from_vector, is_torch, to_vector
from ..wire.arrays import ArrayFormat

_FORMAT = ArrayFormat("set of own tensors", b"secagg own tensors v1", 1, frozenset(["tensors"]))


def own_copy(value: Any) -> Any:
    """Return a copy of what stays at a site, a tensor on the CPU or anything else; itself, if it cannot be copied."""
    try:
        return value.detach().to("cpu", copy=True) if is_torch(value) else copy.deepcopy(value)
    except Exception:  # noqa: BLE001  lazy or without values; a lock, a file …: that is its owner's business
        return value


def storable(own: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a site's own that are tensors of a known dtype, and can be kept as bytes."""
    return {name: value for name, value in own.items() if _is_storable(name, value)}


def own_to_bytes(own: Mapping[str, Any]) -> bytes:
    """Return a site's own tensors, all of them `storable`, as bytes."""
    described, arrays = pack_own(own)
    return _FORMAT.pack({"tensors": described}, arrays)


def own_from_bytes(blob: bytes) -> dict[str, Any]:
    """Read them again.

    Raises
    ------
    FormatError
        If it is something else, or of another version (`DigestError` if it is damaged).
    StateError
        If there are tensors of torch's, which this process has not imported.
    """
    return _FORMAT.unpack(blob, lambda header, arrays: unpack_own(header["tensors"], arrays))


def pack_own(own: Mapping[str, Any]) -> tuple[list[list[Any]], list[NDArray[Any]]]:
    """Return ``[name, dtype, shape, of torch]`` of each tensor, for JSON, and the arrays; bfloat16 as its bits."""
    items, arrays = [], []
    for name, value in own.items():
        dtype, shape = describe(name, value)
        items.append([name, dtype, list(shape), is_torch(value)])
        arrays.append(to_vector(value).reshape(shape))
    return items, arrays


def unpack_own(items: Sequence[Any], arrays: Sequence[NDArray[Any]]) -> dict[str, Any]:
    """Return the tensors that `pack_own` has packed; errors as of `own_from_bytes`."""
    if len(items) != len(arrays):
        raise FormatError("what is stored has other files than its header says")
    own: dict[str, Any] = {}
    for (name, dtype, shape, of_torch), array in zip(items, arrays, strict=True):
        if name in own or (dtype not in FLOAT_DTYPES and dtype not in LOCAL_DTYPES):
            raise FormatError(f"the stored tensor {name!r} is of no known dtype, or there twice")
        if (list(array.shape), array.dtype) != (shape, np.dtype(FLOAT_DTYPES.get(dtype, dtype))):
            raise FormatError(f"the stored tensor {name!r} is not what its header says")
        own[name] = _as_torch(array, dtype) if of_torch else array
    return own


def _as_torch(array: NDArray[Any], dtype: str) -> Any:
    torch = sys.modules.get("torch")
    if torch is None:
        raise StateError("what stays at the site are tensors of torch: import torch first")
    return from_vector(array.reshape(-1), dtype, array.shape, torch.empty(0, dtype=getattr(torch, dtype)))


def _is_storable(name: str, value: Any) -> bool:
    try:
        describe(name, value)
    except LayoutError:
        return False
    return True
