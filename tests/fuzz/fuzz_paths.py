"""Lets the scripts of this folder import what tests share; pytest does it by its configuration."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
