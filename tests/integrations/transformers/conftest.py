"""Two sites with a server; nothing is fetched from a hub."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from callback_sites import kits, sites

__all__ = ["kits", "sites"]
