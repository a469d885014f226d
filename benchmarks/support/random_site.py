"""A site with random tensors, for processes of their own; its values can be drawn again from its number."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

import secagg


def values(folder: Path, number: int) -> dict[str, np.ndarray]:
    """Return site `number`'s tensors: the model's names and shapes, float32 in [−1, 1]."""
    generator = np.random.default_rng(number)
    with np.load(folder / "model.npz") as model:
        return {name: generator.uniform(-1, 1, model[name].shape).astype(np.float32) for name in model.files}


def encrypt(folder: Path, config: str, number: int, weight: float) -> Path:
    """Encrypt as site `number` under a configuration in JSON; returns the path of the update."""
    path = folder / f"site-{number}.secagg"
    site = secagg.Client(
        secagg.Config.from_dict(json.loads(config)), secagg.load_key(folder / "client.key"), f"site-{number}"
    )
    site.encrypt_to(path, values(folder, number), weight)
    return path
