"""``functools.cached_property`` without the lock that it has before Python 3.12.

All objects of a class share that lock: a process that is forked while any thread computes such a property waits for it
for ever. What is computed twice here, by two threads at once, is the same.
"""

from __future__ import annotations

import functools
from typing import Any, Self, TypeVar, overload

_Value = TypeVar("_Value")


class cached_property(functools.cached_property[_Value]):
    """Computed once an object, when it is first asked for."""

    @overload
    def __get__(self, instance: None, owner: type[Any] | None = None) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type[Any] | None = None) -> _Value: ...
    def __get__(self, instance: object | None, owner: type[Any] | None = None) -> Self | _Value:
        """Return the value, which later lookups find in the object itself."""
        if instance is None:
            return self
        assert self.attrname is not None
        value = instance.__dict__[self.attrname] = self.func(instance)
        return value
