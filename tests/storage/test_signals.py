"""What interrupts a command says which signal came, whatever a library makes of it."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from secagg.storage.signals import terminable


def library() -> None:
    """Raise an interrupt of its own in place of that of a signal."""
    try:
        signal.raise_signal(signal.SIGTERM)
    except KeyboardInterrupt:
        raise KeyboardInterrupt from None


def ctrl_c() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("call", "args"), [(library, (signal.SIGTERM,)), (ctrl_c, ())])
def test_an_interrupt_says_what_came(call: Callable[[], None], args: tuple[int, ...]) -> None:
    with pytest.raises(KeyboardInterrupt) as raised, terminable():
        call()
    assert raised.value.args == args
