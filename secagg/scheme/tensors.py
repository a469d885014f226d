"""Tensors of any library as one-dimensional NumPy vectors, and back.

torch is looked at only if the caller has imported it already.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import LayoutError

#: Float dtypes that are aggregated. bfloat16, which NumPy lacks, is held as its uint16 bit patterns.
FLOAT_DTYPES = {"float16": np.float16, "bfloat16": np.uint16, "float32": np.float32, "float64": np.float64}

#: Dtypes of tensors that stay at the site.
LOCAL_DTYPES = frozenset(["bool"] + [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)])


def is_torch(value: Any) -> bool:
    """Return whether a value is a tensor of torch's."""
    kind = getattr(sys.modules.get("torch"), "Tensor", None)  # which is absent while another thread imports torch
    return kind is not None and isinstance(value, kind)


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: two of the same place are one tensor. Sizes in bytes.

    `start` and `end` are the addresses of its first byte and behind its last; all distances between its elements are
    multiples of `step`, 0 of one element.
    """

    device: str
    address: int
    dtype: str
    itemsize: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    start: int = field(compare=False)
    end: int = field(compare=False)
    step: int = field(compare=False)


def place(value: Any) -> Place | None:
    """Return where a tensor lies, one of any dtype and class; None of one without elements or an address of its own.

    What is no tensor has no place, and NumPy's scalars are values.
    """
    if is_torch(value):
        try:
            device, address, itemsize = str(value.device), value.data_ptr(), value.element_size()
            steps, shape = [step * itemsize for step in value.stride()], tuple(value.shape)
            dtype = str(value.dtype).removeprefix("torch.") + "-" * value.is_neg() + "*" * value.is_conj()
        except (RuntimeError, NotImplementedError, ValueError):  # lazy, sparse, nested, fake …
            return None
    elif isinstance(value, np.ndarray):
        device, address, itemsize = "cpu", value.__array_interface__["data"][0], value.itemsize
        steps, shape = list(value.strides), value.shape
        dtype = value.dtype.name if value.dtype.isnative else value.dtype.str
    else:
        return None
    if 0 in shape or not address or not itemsize:
        return None
    # The step of a dimension of one element says nothing.
    strides = tuple(step if size > 1 else 0 for size, step in zip(shape, steps, strict=True))
    reach = [(size - 1) * step for size, step in zip(shape, strides, strict=True)]
    start = address + sum(far for far in reach if far < 0)
    end = address + sum(far for far in reach if far > 0) + itemsize
    return Place(device, address, dtype, itemsize, shape, strides, start, end, math.gcd(*strides))


def describe(name: str, value: Any) -> tuple[str, tuple[int, ...]]:
    """Return dtype name and shape of a tensor.

    Raises
    ------
    LayoutError
        If the value is no tensor, holds no data, or has a dtype that cannot be aggregated.
    """
    torch = sys.modules.get("torch")
    if torch is not None and is_torch(value):
        fault = _fault_of_torch(torch, value)
        if fault:
            raise LayoutError(f"tensor {name!r} {fault}")
        dtype, shape = str(value.dtype).removeprefix("torch."), tuple(value.shape)
    elif isinstance(value, (np.ndarray, np.generic)):
        fault = _fault_of_numpy(value)
        if fault:
            raise LayoutError(f"tensor {name!r} {fault}")
        dtype, shape = value.dtype.name, value.shape
    else:
        raise LayoutError(f"{name!r} is a {type(value).__name__}; it must be a torch tensor or a NumPy array")
    if dtype not in FLOAT_DTYPES and dtype not in LOCAL_DTYPES:
        raise LayoutError(f"tensor {name!r} has dtype {dtype}; use {', '.join(FLOAT_DTYPES)}, an integer or bool")
    return dtype, shape


def _fault_of_torch(torch: Any, value: Any) -> str | None:
    """Return why a tensor of torch has no values that could be read, and what to do; None if it has."""
    kind = type(value)
    if torch.nn.parameter.is_lazy(value):
        return "is lazy, and has no shape yet: run the network once first"
    if value.is_nested:
        return "is nested, and has no one shape: pad it (torch.nested.to_padded_tensor)"
    if hasattr(value, "full_tensor"):  # a DTensor: here is this process's shard of it
        return "is sharded over processes: take its full_tensor() on every rank, and send from rank 0"
    if hasattr(value, "fake_mode"):
        return "is a FakeTensor, which has no values: make the network outside FakeTensorMode"
    if kind is not torch.Tensor and kind is not torch.nn.Parameter:
        return (
            f"is of the class {kind.__name__}, whose values may be elsewhere or mean something else: give a plain "
            "tensor (.detach().as_subclass(torch.Tensor), where its class has no way of its own)"
        )
    if value.is_meta:
        return "is on the device meta, and has no values: load the weights first (Module.to_empty, load_state_dict)"
    if value.is_quantized:
        return "is quantised: give dequantize() of it"
    if value.layout is not torch.strided:
        return f"has the layout {value.layout}: give to_dense() of it"
    inside = "has no memory of its own, as inside torch.func (vmap, grad): give what such a transformation returns"
    try:
        address, nbytes = value.data_ptr(), value.untyped_storage().nbytes()
    except RuntimeError:
        return inside
    if value.numel() and nbytes and not address:  # what would be read there are no values
        return inside
    if value.numel() and not nbytes:
        return "has no values, for its storage was freed, as FSDP does with shards: gather the whole tensor first"
    return None


def _fault_of_numpy(value: Any) -> str | None:
    """Return why an array has no plain values, and what to do; None if it has."""
    if isinstance(value, np.ma.MaskedArray):
        return "is a masked array: fill it first (filled())"
    if isinstance(value, np.ndarray) and type(value) not in (np.ndarray, np.memmap):
        return f"is of the class {type(value).__name__}, whose values may mean something else: give np.asarray() of it"
    if value.dtype.hasobject:
        return "holds Python objects: give an array of floats (astype)"
    if value.dtype.names is not None:
        return f"has the fields {', '.join(value.dtype.names)}: give each as an array of its own"
    return None


def held_dtype(dtype: str) -> str:
    """Return in which dtype a global model is held and sent: 16-bit floats would lose small mean differences."""
    return "float32" if dtype in ("float16", "bfloat16") else dtype


def to_array(name: str, value: Any) -> tuple[str, NDArray[Any]]:
    """Return dtype name and values of a tensor, perhaps without a copy; bfloat16 as float32. Errors of `describe`."""
    dtype, shape = describe(name, value)
    return dtype, np.asarray(from_vector(to_vector(value), dtype, shape))


def held(name: str, value: Any) -> NDArray[Any]:
    """Return a copy of a tensor of a global model in its `held_dtype`; `LayoutError` if it cannot be one."""
    dtype, array = to_array(name, value)
    return array.astype(held_dtype(dtype))


def to_vector(value: Any) -> NDArray[Any]:
    """Return the values of a float tensor as a C-contiguous vector, without a copy where that is possible."""
    torch = sys.modules.get("torch")
    if torch is not None and is_torch(value):
        flat = value.detach().cpu().resolve_neg().contiguous().reshape(-1)
        vector: NDArray[Any] = (flat.view(torch.int16) if flat.dtype == torch.bfloat16 else flat).numpy()
        return vector.view(np.uint16) if flat.dtype == torch.bfloat16 else vector
    array = np.asarray(value)
    if array.dtype.name == "bfloat16":  # of ml_dtypes
        array = array.view(np.uint16)
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")).reshape(-1)


def from_vector(vector: NDArray[Any], dtype: str, shape: tuple[int, ...], like: Any = None) -> Any:
    """Return a vector as a tensor of the library, dtype, shape and device of `like`.

    Without `like` the result is a NumPy array; bfloat16 becomes float32, which holds every bfloat16 value, as it does
    where `like` is an array of float32.
    """
    torch = sys.modules.get("torch")
    if torch is not None and is_torch(like):
        tensor = torch.from_numpy(vector.view(np.int16) if dtype == "bfloat16" else vector)
        tensor = tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor
        return tensor.reshape(shape).to(like.device)
    if dtype == "bfloat16" and (like is None or like.dtype.name == "float32"):
        return (vector.astype(np.uint32) << 16).view(np.float32).reshape(shape)
    array = vector.reshape(shape)
    if like is None:
        return array
    array = array.view(like.dtype) if dtype == "bfloat16" else array.astype(like.dtype, copy=False)
    return array[()] if isinstance(like, np.generic) else array
