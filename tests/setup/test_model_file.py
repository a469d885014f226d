"""A model as a file: any form will do. What is refused, `secagg plan` is asked (tests/cli/test_plan.py)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from small_model import SHAPES, VALUES, random_state

from secagg.errors import BackendUnavailableError, LayoutError
from secagg.setup.model_file import STATE_KEYS, read_layout, read_state


def test_a_model_may_come_in_any_form(tmp_path: Path) -> None:
    state = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in SHAPES.items()}
    state["steps"] = torch.tensor(3)
    (tmp_path / "m.json").write_text(
        json.dumps(
            {name: {"shape": shape, "dtype": "bfloat16"} for name, shape in SHAPES.items()}
            | {"steps": {"shape": [], "dtype": "int64"}}
        )
    )
    torch.save(state, tmp_path / "m.pt")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "lightning.pth")
    torch.save({"model": state, "optimizer": {"lr": 0.1}}, tmp_path / "other.pt")
    read = [read_layout(tmp_path / name) for name in ("m.json", "m.pt", "lightning.pth", "other.pt")]
    assert read[0].size("encrypted") == VALUES
    assert read[0].size("local") == 1
    assert read == read[:1] * 4
    np.savez(tmp_path / "m.npz", **random_state(0))
    assert read_layout(tmp_path / "m.npz").to_json() == [
        [[n], "float32", s, "encrypted", False] for n, s in SHAPES.items()
    ]


@pytest.mark.parametrize("key", STATE_KEYS)
def test_a_state_dict_among_other_things(tmp_path: Path, key: str) -> None:
    state = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    torch.save(state, tmp_path / "alone.pt")
    torch.save({"epoch": 3, "optimizer": {"lr": 0.1}, key: state, "loss": torch.tensor(0.5)}, tmp_path / "among.pt")
    assert read_layout(tmp_path / "among.pt") == read_layout(tmp_path / "alone.pt")
    other = next(name for name in STATE_KEYS if name != key)
    torch.save({key: state, other: state}, tmp_path / "two.pt")
    with pytest.raises(LayoutError, match=f"(?=.*'{key}')(?=.*'{other}').* each of which may be the model"):
        read_state(tmp_path / "two.pt")
    torch.save({key: torch.zeros(3), other: torch.zeros(2)}, tmp_path / "names.pt")  # a tensor may have such a name
    assert list(read_state(tmp_path / "names.pt")) == [key, other]


def test_safetensors(tmp_path: Path) -> None:
    state = random_state(0)
    (tmp_path / "m.safetensors").write_bytes(safetensors.numpy.save(state))
    read = read_state(tmp_path / "m.safetensors")
    assert read.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(read[name], value)
    half = {"w": torch.full((3,), 0.1, dtype=torch.bfloat16), "steps": torch.tensor(3)}
    (tmp_path / "half.SafeTensors").write_bytes(safetensors.torch.save(half))
    assert torch.equal(read_state(tmp_path / "half.SafeTensors")["w"], half["w"])
    layout = read_layout(tmp_path / "half.SafeTensors")
    found = {spec.name: (spec.dtype, spec.shape, spec.role) for spec in layout.tensors}
    assert found == {"w": ("bfloat16", (3,), "encrypted"), "steps": ("int64", (), "local")}


@pytest.mark.parametrize(
    ("library", "extra", "name"),
    [("safetensors", "safetensors", "m.safetensors"), ("torch", "monai", "m.safetensors"), ("torch", "monai", "m.pt")],
)
def test_a_library_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, extra: str, name: str
) -> None:
    state = {"w": torch.zeros(3, dtype=torch.bfloat16)}
    (tmp_path / "m.safetensors").write_bytes(safetensors.torch.save(state))
    torch.save(state, tmp_path / "m.pt")
    monkeypatch.delitem(sys.modules, "safetensors.torch")
    monkeypatch.delattr(safetensors, "torch")
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(BackendUnavailableError, match=rf"needs the library {library}, .*: pip install 'secagg.{extra}"):
        read_layout(tmp_path / name)
