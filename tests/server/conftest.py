"""A hard timeout for every test of this folder, and sites to upload from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hanging import watched
from three_sites import provision

__all__ = ["provision"]


@pytest.fixture(autouse=True)
def hard_timeout() -> Iterator[None]:
    with watched():
        yield
