"""One value of YAML, as it is typed on a command line."""

from __future__ import annotations

from typing import Any

import pytest

from secagg.errors import ConfigError
from secagg.storage.yaml_file import read_scalar


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1/3", "1/3"),
        ("0", 0),
        ("0.5", 0.5),
        ("1e-3", 1e-3),
        ("-2E5", -2e5),
        ("1.5e+2", 150.0),
        ("'1e-3'", "1e-3"),
        ("e3", "e3"),
        ("true", True),
        ("'true'", "true"),
        ("null", None),
        ("", None),
        ("a b", "a b"),
        ("/data/site a", "/data/site a"),
    ],
)
def test_scalars(text: str, value: Any) -> None:
    found = read_scalar(text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    "text", ["[1, 2]", "{a: 1}", "a: b", "!!set {a}", "'open", "!!python/object:os.system x", "[" * 5000]
)
def test_what_is_no_scalar(text: str) -> None:
    with pytest.raises(ConfigError):
        read_scalar(text)
