"""benchmarks/models has the shapes that the libraries' networks have."""

from __future__ import annotations

import runpy
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "benchmarks" / "models"


def test_lists_of_shapes_are_those_of_the_networks() -> None:
    made = runpy.run_path(str(FOLDER / "make_models.py"))["texts"]()
    kept = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")}
    assert kept.keys() == made.keys()
    for name, text in made.items():
        assert kept[name] == text, f"{name}: if it is meant, run benchmarks/models/make_models.py, then make sizes"
