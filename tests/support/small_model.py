"""A small model to plan for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from secagg.setup.model_file import read_layout
from secagg.wire.layout import Layout

SHAPES = {"enc.conv.weight": [16, 4, 3, 3, 3], "enc.conv.bias": [16], "head.weight": [30, 40], "scale": []}
VALUES = 16 * 4 * 27 + 16 + 1200 + 1


def random_state(seed: int, largest: float = 1.0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {name: random.uniform(-largest, largest, shape).astype(np.float32) for name, shape in SHAPES.items()}


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    path = tmp_path / "shapes.yaml"
    path.write_text(yaml.safe_dump(SHAPES), encoding="utf-8")
    return path


@pytest.fixture
def layout(shapes: Path) -> Layout:
    return read_layout(shapes)
