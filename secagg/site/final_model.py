"""The model that a site has when all rounds are done, in a file that other programs read."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError, StorageError
from ..scheme.tensors import describe, from_vector, to_vector
from ..storage.files import os_errors, replace_file

#: What the name of a file says of its kind.
SAFETENSORS_SUFFIX = ".safetensors"
TORCH_SUFFIXES = (".pt", ".pth")


def check_final_model(path: Path) -> None:
    """Find out before hours of training whether a model can be written to a file. One that exists will be replaced.

    Raises
    ------
    ConfigError
        If its name tells no kind that is known, or it is a folder or a device.
    StorageError
        If its folder is missing, or cannot be written to.
    ImportError
        If the library that writes it is missing.
    """
    if path.suffix == SAFETENSORS_SUFFIX:
        import safetensors  # noqa: F401
    elif path.suffix in TORCH_SUFFIXES:
        import torch  # noqa: F401
    else:
        known = ", ".join((SAFETENSORS_SUFFIX, *TORCH_SUFFIXES))
        raise ConfigError(f"{path}: the kind of a file is told by its name, which must end in {known}")
    if os.path.lexists(path) and not path.is_file():
        raise ConfigError(f"{path} is there, and no file: name another one")
    with os_errors(StorageError, f"cannot write to the folder {path.parent.absolute()}"):
        tempfile.TemporaryFile(dir=path.parent).close()


def write_final_model(path: Path, state: Mapping[str, Any]) -> None:
    """Write the tensors of a model, for its owner alone (0600): whole, or not at all.

    Parameters
    ----------
    path : Path
        ``.safetensors``, or ``.pt`` or ``.pth`` for a state dict of torch, which ``torch.load(…, weights_only=True)``
        reads.
    state : mapping of str to torch.Tensor or numpy.ndarray
        Names, order, shapes and dtypes are those of the file.

    Raises
    ------
    LayoutError
        If it holds what is no tensor.
    StorageError
        If the file cannot be written.
    """
    data = _safetensors(state) if path.suffix == SAFETENSORS_SUFFIX else _torch(state)
    with replace_file(path, 0o600) as file:
        file.write(data)


def _safetensors(state: Mapping[str, Any]) -> bytes:
    if any(hasattr(value, "new_empty") for value in state.values()):
        from safetensors.torch import save

        return save(_of_torch(state))
    from safetensors import numpy

    return numpy.save({name: _own(name, value) for name, value in state.items()})


def _torch(state: Mapping[str, Any]) -> memoryview:
    import torch

    stream = io.BytesIO()
    torch.save(_of_torch(state), stream)
    return stream.getbuffer()


def _of_torch(state: Mapping[str, Any]) -> dict[str, Any]:
    import torch

    return {name: _own(name, value, torch.empty(0)) for name, value in state.items()}


def _own(name: str, value: Any, like: Any = None) -> Any:
    """Return a contiguous copy of a tensor, of torch's on the CPU if `like` is: files hold no shared storage."""
    dtype, shape = describe(name, value)
    return from_vector(to_vector(value).copy(), dtype, shape, like)
