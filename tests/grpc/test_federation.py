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
from secagg.errors import ConfigError, StateError, TransportError
from secagg.integrations.grpc import SiteSession
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
    federation.close()


def test_only_its_own_uploads_are_cleared_away(provision: Any, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    (spool / "mail").write_text("not ours")
    (spool / "site-1-x.upload").write_text("left by a server that was killed")
    Federation(provision.config, provision.keys.server, tmp_path, round_timeout=10.0).close()
    assert [path.name for path in spool.iterdir()] == ["mail"]


def test_one_server_a_folder(provision: Any, tmp_path: Path) -> None:
    first = Federation(provision.config, provision.keys.server, tmp_path, round_timeout=10.0)
    with pytest.raises(ConfigError, match="another server works in the run folder"):
        Federation(provision.config, provision.keys.server, tmp_path, round_timeout=10.0)
    first.close()
    Federation(provision.config, provision.keys.server, tmp_path, round_timeout=10.0).close()


@pytest.mark.parametrize("timeout", [0.0, -1.0, 1e12, float("inf"), float("nan")])
def test_timeouts_that_cannot_be(provision: Any, tmp_path: Path, timeout: float) -> None:
    with pytest.raises(ConfigError, match="the round timeout is"):
        Federation(provision.config, provision.keys.server, tmp_path, round_timeout=timeout)
    with pytest.raises(ConfigError, match="the timeout is"):
        SiteSession("127.0.0.1:1", "site-1", tls=None, timeout=timeout)
