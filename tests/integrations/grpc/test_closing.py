"""A channel that cannot be closed: gRPC waits for ever for a call that Ctrl-C has interrupted as it began."""

from __future__ import annotations

import threading
import time

import pytest

from secagg.errors import StateError
from secagg.integrations.grpc import SiteSession
from secagg.integrations.grpc import link as module


def test_closing_waits_for_a_moment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CLOSE_SECONDS", 0.1)
    link = module.GrpcLink("127.0.0.1:1", None)
    close, free = link._channel.close, threading.Event()
    monkeypatch.setattr(link._channel, "close", free.wait)
    start = time.monotonic()
    link.close()
    assert time.monotonic() - start < 60
    free.set()
    close()


def test_a_closed_session_says_so() -> None:
    session = SiteSession("127.0.0.1:1", "a", tls=None)
    session.close()
    session.close()
    session.leave(0)  # raises nothing, as said
    for call in (session.join, session.status, lambda: session.skip(0)):
        with pytest.raises(StateError, match="the session is closed"):
            call()
