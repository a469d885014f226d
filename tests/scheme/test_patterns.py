"""Patterns over names: held against fnmatch, and fast where there are many of both."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secagg.errors import ConfigError
from secagg.scheme.aggregation import Aggregation
from secagg.scheme.patterns import matches, read_patterns, unmatched

TEXTS = st.text("ab.*?[]!", min_size=1, max_size=6)


@given(st.lists(TEXTS, unique=True, max_size=5), st.lists(st.lists(TEXTS, min_size=1, max_size=3), max_size=5))
def test_as_fnmatch_has_it(patterns, tensors):
    found = matches(tuple(patterns), tuple(map(tuple, tensors)))
    for names, keys in zip(tensors, found, strict=True):
        assert set(keys) == {pattern for pattern in patterns if any(fnmatchcase(name, pattern) for name in names)}
    idle = [pattern for pattern in patterns if not any(pattern in keys for keys in found)]
    assert unmatched(patterns, found) == (idle[0] if idle else None)


@pytest.mark.parametrize("value", ["w", None, 3, {"w": 1}, [""], ["w", 3]])
def test_what_is_no_list_of_patterns(value):
    with pytest.raises(ConfigError, match="stay"):
        read_patterns(value, "stay")


def test_bounds_of_a_tensor_of_several_names():
    aggregation = Aggregation(max_abs={"default": 1.0, "b.*": 0.5, "a.w": 0.5, "c.*": 2.0})
    assert aggregation.bounds_of((("a.w", "b.w"), ("c.w",), ("d",))) == [0.5, 2.0, 1.0]
    with pytest.raises(ConfigError, match="'a.w' matches .*with different numbers"):
        aggregation.bounds_of((("a.w", "c.w"), ("b.w",)))
    with pytest.raises(ConfigError, match="pattern 'c.\\*' matches no tensor"):
        aggregation.bounds_of((("a.w", "b.w"),))
    with pytest.raises(ConfigError, match="no pattern for tensor 'd'"):
        Aggregation(max_abs={"a": 1.0}).bounds_of((("a",), ("d",)))


def test_many_patterns_and_many_tensors(monkeypatch):
    """Names alone are looked up, not tried one by one; and what was found for a model is not sought again."""
    names = tuple((f"blocks.{index // 12}.layer.{index % 12}.weight",) for index in range(1920))
    globs = Aggregation(max_abs={"default": 1.0} | {f"{name[:-6]}*": 0.5 for (name,) in names[:1159]})
    assert globs.bounds_of(names) == [0.5] * 1159 + [1.0] * 761

    def refuse(pattern):
        raise AssertionError(f"{pattern!r} is tried")

    monkeypatch.setattr("secagg.scheme.patterns.translate", refuse)
    assert globs.bounds_of(names) == [0.5] * 1159 + [1.0] * 761
    plain = Aggregation(max_abs={"default": 1.0} | {name: 0.5 for (name,) in names[:1159]})
    assert plain.bounds_of(names) == [0.5] * 1159 + [1.0] * 761
