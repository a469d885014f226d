"""What acknowledged means: on the disk under a name that lasts; and a server that stops leaves nothing half done."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import SMALL, STATE, Running, chunks_of, make_signed, messages, serving, typed, wait_until
from signed import Signed

import secagg
from secagg.errors import ConfigError, FormatError, StateError, StorageError
from secagg.integrations.grpc import secagg_pb2 as pb
from secagg.server import run_folder
from secagg.server.open_round import OpenRound
from secagg.server.run_folder import RunFolder


@pytest.fixture(scope="module")
def signed() -> Signed:
    return make_signed()


@pytest.fixture
def updates(signed: Signed) -> dict[str, secagg.Update]:
    return {name: signed.site(name).encrypt(SMALL, round=0) for name in signed.names}


@pytest.fixture
def running(signed: Signed, tmp_path: Path) -> Iterator[Running]:
    with serving(signed, tmp_path / "run", round_timeout=1000.0) as running:
        yield running


def upload(running: Running, update: secagg.Update) -> bool:
    """Upload; return whether it was there already."""
    with running.session(update.header.site) as session:
        return session.upload(update).already_added


def test_a_name_that_may_not_last_is_not_acknowledged(
    running: Running, updates: dict[str, secagg.Update], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is told that an update is there before the folder is synchronised, whoever asks, and however often."""
    synchronise, asked = run_folder.synchronise, 0

    def failing(path: Path) -> None:
        nonlocal asked
        if path.name == "round-0":
            asked += 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        synchronise(path)

    with running.session("site-3") as session:
        session.join()  # the round waits for it
    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "synchronise", failing)
        for times in (1, 2, 3):
            with pytest.raises(StorageError, match="could not store the uploads of round 0"):
                upload(running, updates["site-1"])
            assert asked == times
    assert running.server.status().added == ("site-1",)
    assert upload(running, updates["site-1"])  # and is acknowledged now, once in the sum
    assert not upload(running, updates["site-2"])
    assert not upload(running, updates["site-3"])
    with secagg.Update.open(running.folder / "aggregate-0.secagg") as aggregate:
        assert sorted(aggregate.header.sites) == ["site-1", "site-2", "site-3"]


def test_a_damaged_file_is_found_when_the_aggregate_cannot_be_stored(
    running: Running, updates: dict[str, secagg.Update]
) -> None:
    """To add up again is to read again: who is left out then is told, and the round does not end without it."""
    blocker = running.folder / "aggregate-0.secagg" / "in the way"
    with running.session("site-2") as session:
        session.join()
    assert not upload(running, updates["site-1"])
    stored = running.folder / "round-0" / "site-1.update"
    blob = bytearray(stored.read_bytes())
    blob[-200] ^= 1
    stored.write_bytes(blob)
    blocker.mkdir(parents=True)
    assert not upload(running, updates["site-2"])
    wait_until(lambda: running.server.status().added == ("site-2",))
    assert running.server.status().waiting_for == ("site-1",)
    own = pb.DownloadRequest(round=0, nonce=updates["site-1"].header.contributions[0].nonce)
    with running.stub() as stub, pytest.raises(StateError, match="upload it again"):
        typed(lambda: list(stub.Download(own, timeout=120.0)))
    blocker.rmdir()
    blocker.parent.rmdir()
    assert not upload(running, updates["site-1"])
    wait_until(lambda: running.server.status().round == 1)
    with secagg.Update.open(running.folder / "aggregate-0.secagg") as aggregate:
        assert sorted(aggregate.header.sites) == ["site-1", "site-2"]


def test_the_folder_is_free_when_all_calls_have_ended(
    signed: Signed, updates: dict[str, secagg.Update], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that was cancelled may still write: no other server works in the folder meanwhile."""
    taking, go_on, take = threading.Event(), threading.Event(), OpenRound.add

    def slow(*arguments: Any) -> Any:
        taking.set()
        go_on.wait()
        return take(*arguments)

    monkeypatch.setattr(OpenRound, "add", slow)
    folder = tmp_path / "run"
    with serving(signed, folder) as running, running.stub() as stub:
        call = stub.Upload.future(messages(chunks_of(updates["site-1"])), timeout=120.0)
        taking.wait()
        stop = threading.Thread(target=running.server.stop, args=(0.1,))
        stop.start()
        wait_until(call.done)
        with pytest.raises(ConfigError, match="another server works"):
            RunFolder(folder)
        assert stop.is_alive()
        go_on.set()
        stop.join()
        RunFolder(folder).close()
    with serving(signed, folder) as running:
        assert running.server.status().added == ("site-1",)
        assert upload(running, updates["site-1"])


def test_a_server_that_is_stopped_in_an_upload(signed: Signed, tmp_path: Path) -> None:
    """What came until the grace was over is there for the next server."""
    update = signed.site().encrypt(STATE, round=0)
    with serving(signed, tmp_path / "run") as running, running.paused(update, 5) as paused:
        running.server.stop(grace=0.1)
        wait_until(paused.call.done)
    with serving(signed, tmp_path / "run") as running:
        assert running.resume(update).frame == 5
        assert running.server.status().waiting_for == ("site-1",)
        assert not upload(running, update)


def test_a_head_that_is_far_too_long(running: Running, updates: dict[str, secagg.Update], signed: Signed) -> None:
    """Once a head of the model has been seen, far longer ones are refused unread."""
    many = {f"layer-{number}.weight": SMALL["w"] for number in range(100)}
    other = signed.site("site-2").encrypt(many, round=0)
    assert running.resume(other).frame == 0
    assert not upload(running, updates["site-1"])
    with pytest.raises(FormatError, match="are no head for this federation's model"):
        running.resume(other)
    assert not upload(running, updates["site-2"])
