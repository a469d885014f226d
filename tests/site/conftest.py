"""What a provisioner hands out, and the command to try on it."""

from __future__ import annotations

from provisioned import federation, made, secagg

__all__ = ["federation", "made", "secagg"]
