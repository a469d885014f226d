"""Two sites with a server."""

from __future__ import annotations

from callback_sites import kits, sites

__all__ = ["kits", "sites"]
