"""What a provisioner hands out, and the command to try on it."""

from __future__ import annotations

from provisioned import config, federation, made, secagg
from small_model import shapes

__all__ = ["config", "federation", "made", "secagg", "shapes"]
