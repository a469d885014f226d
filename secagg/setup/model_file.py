"""The tensors of a model or of a sample update, from a file: a list of shapes, an .npz, or a torch checkpoint."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import ConfigError, FormatError, LayoutError, show
from ..scheme.params import is_int
from ..scheme.tensors import FLOAT_DTYPES, LOCAL_DTYPES
from ..storage.files import open_regular, os_errors
from ..storage.yaml_file import read_yaml
from ..wire.layout import Layout

SHAPE_SUFFIXES = (".yaml", ".yml", ".json")
TORCH_SUFFIXES = (".pt", ".pth")

#: Where training programs keep the state dict of a checkpoint that holds more than one.
_STATE_KEYS = ("state_dict", "model")


def read_layout(path: Path) -> Layout:
    """Return the layout of a model, all of its float tensors encrypted.

    Parameters
    ----------
    path : Path
        A YAML or JSON file ``{name: shape}`` or ``{name: {shape: …, dtype: …}}``, an .npz, or a torch checkpoint.

    Raises
    ------
    FormatError
        If the file is missing, of another kind, or damaged.
    LayoutError
        If it holds no float tensor, or something that cannot be aggregated.
    """
    layout = _read_shapes(path) if path.suffix.lower() in SHAPE_SUFFIXES else _layout_of(path, read_state(path))
    if not layout.size("encrypted"):
        raise LayoutError(f"{path} has no float tensor with values; only those are aggregated: is it the right file?")
    return layout


def read_state(path: Path) -> Mapping[str, Any]:
    """Return the tensors of an .npz or a torch checkpoint; errors as of `read_layout`."""
    suffix = path.suffix.lower()
    if suffix in SHAPE_SUFFIXES:
        raise FormatError(f"{path} is a list of shapes; values are read from .npz, {' and '.join(TORCH_SUFFIXES)} only")
    if suffix != ".npz" and suffix not in TORCH_SUFFIXES:
        known = ", ".join((*SHAPE_SUFFIXES, ".npz", *TORCH_SUFFIXES))
        raise FormatError(f"{path}: the kind of a file is told by its name, which must end in {known}")
    with os_errors(FormatError, f"cannot read {str(path)!r}"), open_regular(path) as file:
        return _read_arrays(path, file) if suffix == ".npz" else _read_checkpoint(path, file)


def _layout_of(path: Path, state: Mapping[str, Any]) -> Layout:
    try:
        return Layout.of(state)
    except LayoutError as error:
        raise LayoutError(f"{path}: {error}; a file must hold a state dict alone, names and tensors") from error


def _read_arrays(path: Path, file: BinaryIO) -> dict[str, Any]:
    try:
        arrays = np.load(file, allow_pickle=False)
        if isinstance(arrays, np.lib.npyio.NpzFile):
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise FormatError(f"{path} is no .npz of plain arrays: {error}") from error
    raise FormatError(f"{path} holds one array without a name; save arrays by name: numpy.savez(file, **state)")


def _read_checkpoint(path: Path, file: BinaryIO) -> Mapping[str, Any]:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that are none of torch's
            data = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # of a damaged pickle, anything; torch's own message advises to load it unsafely
        raise FormatError(
            f"{path} cannot be read as tensors alone; is it damaged, or does it hold other objects? "
            "Save a state dict: torch.save(model.state_dict(), file)"
        ) from error
    if isinstance(data, Mapping):
        for key in _STATE_KEYS:
            if isinstance(data.get(key), Mapping):
                return data[key]  # type: ignore[no-any-return]
        return data
    raise LayoutError(f"{path} holds a {type(data).__name__}; a state dict is needed, a mapping of names to tensors")


def _read_shapes(path: Path) -> Layout:
    try:
        data = read_yaml(path)
    except ConfigError as error:  # no configuration, but a file like any other
        raise FormatError(str(error)) from error
    if not isinstance(data, dict):
        raise FormatError(f"{path} holds {show(data)}; write names and shapes, such as conv.weight: [16, 1, 3, 3, 3]")
    items = [_describe(path, name, value) for name, value in data.items()]
    try:
        return Layout.from_json(items)
    except FormatError as error:  # what is not obvious: names too long, too many values
        raise FormatError(f"{path}: {error}") from error


def _describe(path: Path, name: object, value: object) -> list[object]:
    """Return one tensor of a list of shapes in the form of `Layout.from_json`."""
    block = value if isinstance(value, dict) else {"shape": value}
    shape, dtype = block.get("shape"), block.get("dtype", "float32")
    if not isinstance(name, str) or not block.keys() <= {"shape", "dtype"}:
        raise FormatError(f"{path}: {show(name)}: {show(value)}; write a name and its shape, or {{shape: …, dtype: …}}")
    if not isinstance(shape, list) or not all(is_int(size) and size >= 0 for size in shape):
        raise FormatError(f"{path}: tensor {name!r} has the shape {show(shape)}; write a list such as [16, 1, 3, 3, 3]")
    if not isinstance(dtype, str) or (dtype not in FLOAT_DTYPES and dtype not in LOCAL_DTYPES):
        raise FormatError(
            f"{path}: tensor {name!r} has the dtype {show(dtype)}; use {', '.join(FLOAT_DTYPES)}, an integer or bool"
        )
    return [[name], dtype, shape, "encrypted" if dtype in FLOAT_DTYPES else "local", False]
