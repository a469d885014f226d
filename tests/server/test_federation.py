"""The federation without its network: what only a failing disk can bring about."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

import secagg
from secagg.errors import ConfigError, FormatError, SecAggError, StateError, StorageError, TransportError
from secagg.integrations.grpc import SiteSession
from secagg.protocol import DownloadRequest, SkipRequest
from secagg.protocol.chunks import chunks_from
from secagg.server import Call, Federation
from secagg.server.run_folder import RunFolder
from secagg.wire.header import Contribution

T = TypeVar("T")

STATE = {"w": np.full(5, 0.5, np.float32)}


class Here:
    """A connection that lasts."""

    def is_active(self) -> bool:
        return True

    def cancel(self) -> None:
        raise AssertionError("nothing is cancelled here")


def called(federation: Federation, make: Callable[[Call], T]) -> T:
    with federation.call((), Here(), "here") as call:
        return make(call)


def join(federation: Federation, site: str) -> None:
    called(federation, lambda call: call.join(site))


def uploaded(federation: Federation, update: secagg.Update) -> bool:
    """Upload, and return whether it was added by this."""
    return not called(federation, lambda call: call.upload(chunks_from(update, 0))).already_added


def downloaded(federation: Federation, own: secagg.Update) -> secagg.Update:
    """The aggregate of round 0, with an update in it."""
    request = DownloadRequest("aggregate", 0, nonce(own))
    return secagg.Update.from_bytes(
        called(federation, lambda call: b"".join(bytes(chunk.data) for chunk in call.download(request)))
    )


@contextmanager
def opened(provision: Any, folder: Path, round_timeout: float = 1000.0) -> Iterator[Federation]:
    config, key = provision.config, provision.keys.server
    federation = Federation(config, key, folder, round_timeout=round_timeout, certified=False)
    try:
        yield federation
    finally:
        federation.close()


def nonce(update: secagg.Update) -> bytes:
    return update.header.contributions[0].nonce


def fail_to_read(monkeypatch: pytest.MonkeyPatch, update: secagg.Update, failing: Callable[[int], bool]) -> None:
    """Let the reads of an update fail whose numbers, from 1, are `failing`."""
    count = 0
    whole = secagg.Update.frames

    def frames(read: secagg.Update) -> Any:
        nonlocal count
        count += read.header.head == update.header.head
        if read.header.head == update.header.head and failing(count):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return whole(read)

    monkeypatch.setattr(secagg.Update, "frames", frames)


@pytest.fixture
def updates(provision: Any) -> list[secagg.Update]:
    return [provision.clients[f"site-{number}"].encrypt(STATE, weight=1.0) for number in (1, 2, 3)]


def assert_half(provision: Any, federation: Federation, update: secagg.Update) -> None:
    mean = provision.clients["site-3"].decrypt(downloaded(federation, update), like=STATE)
    assert abs(mean["w"] - 0.5).max() < 1e-6


def test_a_disk_that_fails_for_a_moment_between_verifying_and_adding(
    provision: Any, updates: list[secagg.Update], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sum broke, and is made anew from the stored updates, the one that was being added among them."""
    with opened(provision, tmp_path) as federation:
        join(federation, "site-3")  # the round waits for it
        assert uploaded(federation, updates[0])
        with monkeypatch.context() as patch:
            fail_to_read(patch, updates[1], lambda count: count == 2)
            assert uploaded(federation, updates[1])
        assert federation.status().added == ("site-1", "site-2")
        assert not uploaded(federation, updates[1])
        assert uploaded(federation, updates[2])
        assert_half(provision, federation, updates[1])
        [record] = map(json.loads, (tmp_path / "rounds.jsonl").read_text(encoding="utf-8").splitlines())
    assert (record["outcome"], record["attempt"], len(record["uploads"])) == ("completed", 1, 3)


def test_a_disk_that_fails_for_good_between_verifying_and_adding(
    provision: Any, updates: list[secagg.Update], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That update is not acknowledged. What was acknowledged before stays in the sum, and the site may try again."""
    with opened(provision, tmp_path) as federation:
        join(federation, "site-3")
        assert uploaded(federation, updates[0])
        with monkeypatch.context() as patch:
            fail_to_read(patch, updates[1], lambda count: count >= 2)
            with pytest.raises(TransportError, match="the server failed; its log says why"):
                uploaded(federation, updates[1])
        status = federation.status()
        assert (status.round, status.attempt, status.added) == (0, 1, ("site-1",))
        with pytest.raises(StateError, match="upload it again"):
            downloaded(federation, updates[1])
        for update in updates[1:]:
            assert uploaded(federation, update)
        assert_half(provision, federation, updates[0])


def test_an_acknowledged_update_that_cannot_be_read_again(
    provision: Any, updates: list[secagg.Update], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its site, which waits, is told to send it again."""
    with opened(provision, tmp_path) as federation:
        join(federation, "site-3")
        assert uploaded(federation, updates[0])
        path = tmp_path / "round-0" / "site-1.update"
        blob = bytearray(path.read_bytes())
        blob[-200] ^= 1
        path.write_bytes(blob)
        with monkeypatch.context() as patch:
            fail_to_read(patch, updates[1], lambda count: count == 2)
            assert uploaded(federation, updates[1])
        status = federation.status()
        assert (status.added, status.waiting_for) == (("site-2",), ("site-1", "site-3"))
        with pytest.raises(StateError, match="upload it again"):
            downloaded(federation, updates[0])
        for update in (updates[0], updates[2]):
            assert uploaded(federation, update)
        assert_half(provision, federation, updates[0])


def test_an_update_that_cannot_get_its_name(provision: Any, updates: list[secagg.Update], tmp_path: Path) -> None:
    with opened(provision, tmp_path) as federation:
        join(federation, "site-3")
        (tmp_path / "round-0").rmdir()
        with pytest.raises(StorageError, match="could not store the update of 'site-1': No such file"):
            uploaded(federation, updates[0])
        assert federation.status().added == ()
        assert list((tmp_path / "spool").iterdir()) == []
        (tmp_path / "round-0").mkdir()
        for update in updates:
            assert uploaded(federation, update)
        assert_half(provision, federation, updates[0])


def test_only_its_own_uploads_are_cleared_away(provision: Any, updates: list[secagg.Update], tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    (spool / "mail").write_text("not ours")
    (spool / "site-1.part").write_text("left by a server that was killed")
    updates[1].save(spool / "site-2.part")  # of the open round: its site may go on with it
    with opened(provision, tmp_path) as federation:
        assert sorted(path.name for path in spool.iterdir()) == ["mail", "site-2.part"]
        assert federation.status().waiting_for == ("site-2",)


def test_a_run_folder_that_cannot_be_used_is_given_back(provision: Any, tmp_path: Path) -> None:
    (tmp_path / "aggregate-0.secagg").write_bytes(b"rubbish")
    for _ in range(2):  # the second time says the same: the first one did not keep the lock
        with pytest.raises(FormatError):
            Federation(provision.config, provision.keys.server, tmp_path, round_timeout=10.0)
    (tmp_path / "aggregate-0.secagg").unlink()
    with opened(provision, tmp_path) as federation:
        assert federation.status().round == 0


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


def test_a_model_that_cannot_take_its_place_leaves_the_one_before(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.path_of("model", 3).write_bytes(b"as it was")
    with pytest.raises(StorageError, match="could not store the model of round 3: No such file"):
        folder.keep_model(folder.spool / "site-1.model", 3)
    assert folder.path_of("model", 3).read_bytes() == b"as it was"
    folder.close()


def test_who_calls_is_not_told_where_the_folder_lies(
    provision: Any, updates: list[secagg.Update], tmp_path: Path
) -> None:
    with opened(provision, tmp_path) as federation:
        for update in updates[:2]:
            assert uploaded(federation, update)
        (tmp_path / "aggregate-0.secagg").unlink()
        with pytest.raises(FormatError) as caught:
            downloaded(federation, updates[0])
    assert str(caught.value) == "cannot read 'aggregate-0.secagg': No such file or directory"


@pytest.mark.parametrize("fault", ["another round", "another layout", "the same nonce"])
def test_a_site_whose_update_is_refused_is_not_waited_for(
    provision: Any, updates: list[secagg.Update], tmp_path: Path, fault: str
) -> None:
    site = provision.clients["site-2"]
    with opened(provision, tmp_path) as federation:
        assert uploaded(federation, updates[0])
        if fault == "another round":
            header = site.encrypt(STATE, weight=1.0, round=7).header
        elif fault == "another layout":
            header = site.encrypt({"other": STATE["w"]}, weight=1.0).header
        else:
            header = replace(updates[1].header, contributions=(Contribution("site-2", nonce(updates[0])),))
        with pytest.raises(SecAggError):
            called(federation, lambda call: call.resume(header.head))
        status = federation.status()
        assert (status.added, status.waiting_for) == (("site-1",), ())


def skip(federation: Federation, site: str, round: int = 0) -> None:
    called(federation, lambda call: call.skip(SkipRequest(site, round)))


def test_a_round_ends_without_a_site_that_skips_it(
    provision: Any, updates: list[secagg.Update], tmp_path: Path
) -> None:
    with opened(provision, tmp_path) as federation:
        federation.start()
        for name in ("site-1", "site-2", "site-3"):
            join(federation, name)
        for update in updates[:2]:
            assert uploaded(federation, update)
        assert federation.status().waiting_for == ("site-3",)
        skip(federation, "site-3")
        assert_half(provision, federation, updates[0])
        skip(federation, "site-3")  # a retry
        status = federation.status()
        assert (status.round, status.skipped) == (1, ())
        assert status.waiting_for == ("site-1", "site-2", "site-3")
    record = json.loads((tmp_path / "rounds.jsonl").read_text())
    assert (record["outcome"], record["skipped"], record["missing"]) == ("completed", ["site-3"], [])


def test_who_skips_is_not_waited_for_after_a_restart(
    provision: Any, updates: list[secagg.Update], tmp_path: Path
) -> None:
    """Whose upload had begun all the same is: it may go on with it."""
    with opened(provision, tmp_path) as federation:
        for name in ("site-1", "site-2", "site-3"):
            join(federation, name)
        assert uploaded(federation, updates[0])
        skip(federation, "site-2")
        skip(federation, "site-3")
        called(federation, lambda call: call.resume(updates[1].header.head))
    with opened(provision, tmp_path) as federation:
        status = federation.status()
        assert (status.added, status.skipped, status.waiting_for) == (("site-1",), ("site-3",), ("site-2",))
        federation.start()
        assert uploaded(federation, updates[1])
        assert_half(provision, federation, updates[0])


def wait_until_idle(federation: Federation) -> None:
    while federation.status().state != "idle":
        time.sleep(0.02)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_round_that_all_skip_is_no_failed_round(
    provision: Any,
    updates: list[secagg.Update],
    tmp_path: Path,
    restarted: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As after the last round of a training, with a server that goes on."""
    with opened(provision, tmp_path, round_timeout=0.3) as federation, caplog.at_level("INFO"):
        skip(federation, "site-1")
        skip(federation, "site-2")
        if not restarted:
            federation.start()
            wait_until_idle(federation)
    if restarted:
        with opened(provision, tmp_path, round_timeout=0.3) as federation, caplog.at_level("INFO"):
            assert federation.status().skipped == ("site-1", "site-2")
            federation.start()
            wait_until_idle(federation)
    assert "nobody gives anything to round 0" in caplog.messages
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    assert not (tmp_path / "rounds.jsonl").exists()
    with opened(provision, tmp_path) as federation:
        assert (federation.status().state, federation.status().attempt) == ("idle", 1)
        federation.start()
        for update in updates[:2]:
            assert uploaded(federation, update)
        assert_half(provision, federation, updates[0])


def test_a_round_that_lacks_updates_names_whom_it_lacks(
    provision: Any, updates: list[secagg.Update], tmp_path: Path
) -> None:
    with opened(provision, tmp_path, round_timeout=0.3) as federation:
        assert uploaded(federation, updates[0])
        skip(federation, "site-2")
        federation.start()
        while federation.status().attempt == 1:
            time.sleep(0.02)
    record = json.loads((tmp_path / "rounds.jsonl").read_text())
    assert (record["outcome"], record["skipped"], record["missing"]) == ("failed", ["site-2"], ["site-2"])
