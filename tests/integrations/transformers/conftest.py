"""Two sites with a server; nothing is fetched from a hub."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
from accelerate.state import AcceleratorState
from callback_sites import kits, sites

__all__ = ["kits", "one_state", "sites"]


@pytest.fixture(autouse=True)
def one_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sites are threads: new arguments of one would begin accelerate's state anew while another one trains."""
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr(AcceleratorState, "_reset_state", lambda *_, **__: None)
