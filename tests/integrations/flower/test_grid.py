"""Replies are pulled one by one, as they come, until none is left or time is over."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest

from secagg.integrations.flower.grid import OneByOne


@dataclass
class Slow:
    """A grid each of whose replies comes some looks late, or never."""

    late: dict[str, int]
    pushed: list[Any] = field(default_factory=list)
    looks: list[list[str]] = field(default_factory=list)

    def push_messages(self, messages: Iterable[Any]) -> list[str | None]:
        self.pushed += messages
        return [*self.late, None]  # a message that could not be pushed

    def pull_messages(self, identities: Iterable[str]) -> list[str]:
        self.looks.append(list(identities))
        (identity,) = self.looks[-1]
        self.late[identity] -= 1
        return [f"reply to {identity}"] if self.late[identity] == 0 else []

    def get_node_ids(self) -> list[int]:
        return [7]


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    return pauses


def test_order_of_coming(pauses: list[float]) -> None:
    grid = Slow({"a": 2, "b": 1, "c": 3})
    replies = OneByOne(grid).send_and_receive(["m"])  # type: ignore[arg-type]
    assert grid.pushed == ["m"]  # before anybody asks for a reply
    assert not grid.looks
    assert next(replies) == "reply to b"
    assert grid.looks == [["a"], ["b"]]  # and no further
    assert list(replies) == ["reply to a", "reply to c"]
    assert len(grid.looks) == 6


def test_waits_longer_while_nothing_comes(pauses: list[float]) -> None:
    list(OneByOne(Slow({"a": 12}))._pull(["a"], float("inf")))  # type: ignore[arg-type]
    assert pauses[:4] == pytest.approx([0, 0.05, 0.15, 0.35])
    assert pauses[-1] == 3


def test_time_is_over() -> None:
    start = time.monotonic()
    replies = OneByOne(Slow({"a": -1, "b": 1})).send_and_receive([], timeout=0.1)  # type: ignore[arg-type]
    assert list(replies) == ["reply to b"]
    assert 0.1 <= time.monotonic() - start < 5


def test_all_else_is_that_grids() -> None:
    assert OneByOne(Slow({})).get_node_ids() == [7]  # type: ignore[arg-type]
