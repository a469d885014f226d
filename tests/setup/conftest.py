"""What a provisioner hands out."""

from __future__ import annotations

from provisioned import federation, made
from small_model import layout, shapes

__all__ = ["federation", "layout", "made", "shapes"]
