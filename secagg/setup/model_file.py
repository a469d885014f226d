"""The tensors of a model or a sample update, from a file: a list of shapes, .npz, .safetensors or a checkpoint."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import BackendUnavailableError, ConfigError, FormatError, LayoutError, show
from ..scheme.params import is_int
from ..scheme.tensors import FLOAT_DTYPES, LOCAL_DTYPES
from ..storage.files import open_regular, os_errors
from ..storage.yaml_file import read_yaml
from ..wire.layout import Layout

SHAPE_SUFFIXES = (".yaml", ".yml", ".json")
SAFETENSORS_SUFFIX = ".safetensors"
TORCH_SUFFIXES = (".pt", ".pth")
_VALUE_SUFFIXES = (".npz", SAFETENSORS_SUFFIX, *TORCH_SUFFIXES)

#: Where training programs (Lightning, MONAI, nnU-Net …) keep the state dict in a checkpoint that holds more than that.
STATE_KEYS = ("model_state_dict", "state_dict", "net", "network", "network_weights", "model")


def read_layout(path: Path) -> Layout:
    """Return the layout of a model, all of its float tensors encrypted.

    Parameters
    ----------
    path : Path
        A YAML or JSON file ``{name: shape}`` or ``{name: {shape: …, dtype: …}}``, or what `read_state` takes.

    Raises
    ------
    FormatError
        If the file is missing, of another kind, or damaged.
    LayoutError
        If it holds no float tensor, something that cannot be aggregated, or more than one state dict.
    BackendUnavailableError
        If the library that reads it is not installed.
    """
    return read_model(path)[0]


def read_model(path: Path) -> tuple[Layout, Mapping[str, Any] | None]:
    """Return what `read_layout` does, and the tensors themselves; None of a list of shapes, which has no values."""
    state = None if path.suffix.lower() in SHAPE_SUFFIXES else read_state(path)
    layout = _read_shapes(path) if state is None else _layout_of(path, state)
    if not layout.size("encrypted"):
        raise LayoutError(f"{path} has no float tensor with values; only those are aggregated: is it the right file?")
    return layout, state


def read_state(path: Path) -> Mapping[str, Any]:
    """Return the tensors of an .npz, a .safetensors, or a torch checkpoint (.pt, .pth); errors as of `read_layout`.

    A checkpoint is a state dict, or holds one under one of `STATE_KEYS`.
    """
    suffix = path.suffix.lower()
    if suffix in SHAPE_SUFFIXES:
        raise FormatError(f"{path} is a list of shapes; values are read from {', '.join(_VALUE_SUFFIXES)} only")
    if suffix not in _VALUE_SUFFIXES:
        known = ", ".join((*SHAPE_SUFFIXES, *_VALUE_SUFFIXES))
        raise FormatError(f"{path}: the kind of a file is told by its name, which must end in {known}")
    with os_errors(FormatError, f"cannot read {str(path)!r}"), open_regular(path) as file:
        if suffix == ".npz":
            return _read_arrays(path, file)
        return _read_safetensors(path, file) if suffix == SAFETENSORS_SUFFIX else _read_checkpoint(path, file)


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


def _read_safetensors(path: Path, file: BinaryIO) -> dict[str, Any]:
    with _needed(path, "safetensors", "safetensors"):
        from safetensors import SafetensorError, numpy
    data = file.read()
    try:
        try:
            return numpy.load(data)
        except KeyError:  # a dtype that NumPy has not, such as bfloat16
            with _needed(path, "torch", "monai"):
                from safetensors.torch import load
            return load(data)
    except SafetensorError as error:
        raise FormatError(f"{path} is no safetensors file, or damaged: {error}") from error


def _read_checkpoint(path: Path, file: BinaryIO) -> Mapping[str, Any]:
    with _needed(path, "torch", "monai"):
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
    if not isinstance(data, Mapping):
        raise LayoutError(
            f"{path} holds a {type(data).__name__}; a state dict is needed, a mapping of names to tensors"
        )
    states = {key: data[key] for key in STATE_KEYS if isinstance(data.get(key), Mapping)}
    if len(states) > 1:
        raise LayoutError(
            f"{path} holds {' and '.join(map(repr, states))}, each of which may be the model; save the state dict "
            "alone: torch.save(model.state_dict(), file)"
        )
    return next(iter(states.values()), data)


@contextmanager
def _needed(path: Path, library: str, extra: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise BackendUnavailableError(
            f"{path} needs the library {library}, which is not installed: pip install 'secagg[{extra}]'"
        ) from error


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
