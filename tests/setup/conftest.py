"""What a provisioner hands out."""

from __future__ import annotations

from provisioned import federation, made

__all__ = ["federation", "made"]
