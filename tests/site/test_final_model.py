"""The file of the final model: its dtypes, its mode, and what is found out before a federation is joined."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from secagg.errors import ConfigError, LayoutError, StorageError
from secagg.site.final_model import check_final_model, write_final_model

SUFFIXES = pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])


def torch_state() -> dict[str, torch.Tensor]:
    shared = torch.arange(12.0).reshape(3, 4)
    return {
        "b": shared.t(),  # not contiguous
        "a": shared.t(),  # nor alone in its storage
        "half": torch.full((2,), 0.1, dtype=torch.float16),
        "brain": torch.full((2,), 0.1, dtype=torch.bfloat16, requires_grad=True),
        "steps": torch.tensor(3),
        "flag": torch.tensor([True]),
        "none": torch.zeros(0, 2),
    }


def numpy_state() -> dict[str, np.ndarray]:
    grid = np.arange(12, dtype=np.float32).reshape(3, 4)
    return {
        "b": grid.T,
        "a": grid.astype(">f4"),
        "half": np.full(2, 0.1, np.float16),
        "steps": np.array(3),
        "flag": np.array([True]),
        "none": np.zeros((0, 2)),
    }


def read(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    found: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return found


@SUFFIXES
@pytest.mark.parametrize("make", [torch_state, numpy_state])
def test_tensors_come_back(tmp_path: Path, suffix: str, make: Any) -> None:
    path, state = tmp_path / f"model{suffix}", make()
    path.write_bytes(b"of an earlier run")
    check_final_model(path)
    assert path.read_bytes() == b"of an earlier run"
    write_final_model(path, state)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    found = read(path)
    assert found.keys() == state.keys()
    for name, value in state.items():
        expected = (
            value
            if isinstance(value, torch.Tensor)
            else torch.from_numpy(np.array(value, value.dtype.newbyteorder("=")))
        )
        assert found[name].dtype == expected.dtype
        assert torch.equal(found[name], expected)
    before = path.read_bytes()
    write_final_model(path, make())
    assert path.read_bytes() == before


def test_arrays_need_no_torch_to_be_read(tmp_path: Path) -> None:
    write_final_model(tmp_path / "model.safetensors", numpy_state())
    found = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(found["b"], numpy_state()["b"])


@SUFFIXES
def test_what_is_no_tensor(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(LayoutError, match="'w'"):
        write_final_model(tmp_path / f"model{suffix}", {"w": [1.0]})
    assert not list(tmp_path.iterdir())


def test_names_that_cannot_be(tmp_path: Path) -> None:
    for name in ("model", "model.npz", "model.safetensors.gz", ".pt"):
        with pytest.raises(ConfigError, match=r"must end in \.safetensors, \.pt, \.pth"):
            check_final_model(tmp_path / name)
    (tmp_path / "folder.pt").mkdir()
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "dangling.pt").symlink_to("nowhere")
    for name in ("folder.pt", "pipe.pt", "dangling.pt"):
        with pytest.raises(ConfigError, match="is there, and no file"):
            check_final_model(tmp_path / name)
    with pytest.raises(StorageError, match="cannot write to the folder .*/missing"):
        check_final_model(tmp_path / "missing" / "model.pt")


def test_a_folder_that_cannot_be_written_to() -> None:
    with pytest.raises(StorageError, match="cannot write to the folder /proc"):
        check_final_model(Path("/proc/model.pt"))  # where root cannot, either


def test_a_disk_that_fills_up_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        write_final_model(path, numpy_state())
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
