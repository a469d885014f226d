"""The federation without its network: what only a failing disk can bring about."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import secagg
from secagg.errors import StateError, TransportError
from secagg.integrations.grpc.federation import Federation

STATE = {"w": np.full(5, 0.5, np.float32)}


def uploaded(federation: Federation, update: secagg.Update, path: Path) -> None:
    """Do what the server does with an upload."""
    update.save(path)
    _, header = federation.admit(next(iter(update.chunks())), update.header.site)
    federation.add(path, header, 0.0)


def test_a_disk_that_fails_between_verifying_and_adding(provision: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum is lost: the attempt ends at once, those who wait are told, and the round is open again."""
    folder = provision.folder / "failing-disk"
    federation = Federation(provision.config, provision.keys.server, folder, round_timeout=1000.0)
    first, second = (provision.clients[name].encrypt(STATE, weight=1.0) for name in ("site-1", "site-2"))
    federation.join("site-3")  # the round waits for it
    uploaded(federation, first, folder / "first")

    reads = 0
    whole = secagg.Update.frames

    def frames(update: secagg.Update) -> Any:
        nonlocal reads
        reads += 1
        if reads == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return whole(update)

    with monkeypatch.context() as patch:
        patch.setattr(secagg.Update, "frames", frames)
        with pytest.raises(OSError, match="Input/output error"):
            uploaded(federation, second, folder / "second")
    with pytest.raises(TransportError, match="lost the sum of this round; it is open again"):
        federation.wait(0, first.header.contributions[0].nonce, lambda: True)
    with pytest.raises(StateError, match="upload it again"):
        federation.wait(0, second.header.contributions[0].nonce, lambda: True)
    snapshot, _ = federation.snapshot()
    assert (snapshot.attempt.round, snapshot.attempt.number, snapshot.added) == (0, 2, ())
    record = json.loads((folder / "rounds.jsonl").read_text(encoding="utf-8"))
    assert (record["outcome"], record["attempt"]) == ("failed", 1)

    for number, update in enumerate((first, second)):
        uploaded(federation, update, folder / f"again-{number}")
    with federation.wait(0, first.header.contributions[0].nonce, lambda: True) as aggregate:  # type: ignore[union-attr]
        mean = provision.clients["site-3"].decrypt(aggregate, like=STATE)
    assert abs(mean["w"] - 0.5).max() < 1e-6
