"""Limits that cannot be."""

from __future__ import annotations

from typing import Any

import pytest

from secagg.errors import ConfigError
from secagg.server import Limits


@pytest.mark.parametrize("name", ["uploads_in_flight", "disk_quota", "max_upload_nbytes"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "16", None])
def test_counts_are_positive_whole_numbers(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"limits\.{name} is .*; use a whole number above 0"):
        Limits(**{name: value})


@pytest.mark.parametrize("name", ["slot_seconds", "idle_seconds", "upload_seconds"])
@pytest.mark.parametrize("value", [0, -1.0, float("inf"), float("nan"), False, "60"])
def test_seconds_are_positive_numbers(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"limits\.{name} is .*; use a number above 0"):
        Limits(**{name: value})
