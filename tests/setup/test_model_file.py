"""A model as a file: any form will do. What is refused, `secagg plan` is asked (tests/cli/test_plan.py)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from small_model import SHAPES, VALUES, random_state

from secagg.setup.model_file import read_layout


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
    assert read_layout(tmp_path / "m.npz").to_json() == [[n, "float32", s, "encrypted"] for n, s in SHAPES.items()]
