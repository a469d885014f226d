"""Sizes and times as people write and read them."""

from __future__ import annotations

from secagg.errors import show_size
from secagg.ui.units import parse_size, show_seconds


def test_sizes_and_times() -> None:
    sizes = {"20G": 20 << 30, "20GiB": 20 << 30, "20 GB": 20 * 10**9, "1.5T": 3 << 39, "500m": 500 << 20, "7": 7}
    assert {text: parse_size(text) for text in sizes} == sizes
    assert [show_size(n) for n in (0, 999, 1000, 15_600_000, 64 << 30)] == [
        "0 bytes",
        "999 bytes",
        "1.0 kB",
        "15.6 MB",
        "68.7 GB",
    ]
    assert [show_seconds(s) for s in (0, 59.4, 725, 3600, 12_000, 187_000)] == [
        "0 s",
        "59 s",
        "12 min 5 s",
        "1 h",
        "3 h 20 min",
        "2 d 3 h",
    ]
