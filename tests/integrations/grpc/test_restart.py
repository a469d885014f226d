"""What a server goes on with when it starts again: in the middle of a round, under a new key, on damaged files."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from federation import Federation
from running import SMALL, Running, make_signed, serving, wait_until
from signed import Signed

import secagg
from secagg.errors import ConfigError, DuplicateError, FormatError, ManifestMismatchError, RoundMismatchError
from secagg.protocol.messages import DownloadRequest
from secagg.server.stored import check_stored

BASE = bytes(range(32))


@pytest.fixture(scope="module")
def signed() -> Signed:
    return make_signed()


@pytest.fixture(scope="module")
def updates(signed: Signed) -> dict[str, secagg.Update]:
    """Of each site, for round 0; the tests only send them."""
    return {name: signed.site(name).encrypt(SMALL, round=0, base=BASE) for name in signed.names}


@pytest.fixture
def half(signed: Signed, updates: dict[str, secagg.Update], tmp_path: Path) -> Path:
    """A run folder in the middle of round 0: two sites have uploaded, the third one has joined."""
    with serving(signed, tmp_path / "run") as running:
        with running.session("site-3") as session:
            session.join()
        for name in ("site-1", "site-2"):
            running.send(updates[name])
    return tmp_path / "run"


def rotated(signed: Signed, epoch: int) -> Signed:
    """The same parties with other keys."""
    keys = secagg.generate_keys(signed.config, epoch)
    project = signed.reissue(serial=signed.project.serial + epoch, epoch=epoch, key=keys.server.fingerprint)
    return replace(signed, federation=Federation(signed.config, keys), project=project)


def assert_ends_well(running: Running, updates: dict[str, secagg.Update], *missing: str) -> None:
    for name in missing:
        running.send(updates[name])
    site = running.signed.site("site-3")
    with running.session("site-3") as session:
        wait_until(lambda: 0 in session.status().aggregates)
        with session.download(0, running.folder.with_name("aggregate")) as aggregate:
            assert sorted(aggregate.header.sites) == sorted(updates)
            assert np.abs(site.decrypt(aggregate, round=0, base=BASE)["w"] - SMALL["w"]).max() < 1e-4
    wait_until(lambda: not (running.folder / "round-0").exists())


def test_in_the_middle_of_a_round(signed: Signed, updates: dict[str, secagg.Update], half: Path) -> None:
    before = {path: path.read_bytes() for path in sorted((half / "round-0").iterdir())}
    assert [path.name for path in before] == ["site-1.update", "site-2.update"]
    for _ in range(2):
        with serving(signed, half) as running:
            status = running.server.status()
            assert (status.added, status.waiting_for) == (("site-1", "site-2"), ("site-3",))
            assert (status.attempt, status.state, status.base) == (1, "open", BASE)
            reply = running.resume(updates["site-1"])
            assert reply.already_added
            secagg.Receipt.from_bytes(reply.receipt).check(updates["site-1"], signed.project)
            with pytest.raises(DuplicateError):
                running.resume(signed.site().encrypt(SMALL, round=0, base=BASE))
        assert {path: path.read_bytes() for path in before} == before
    with serving(signed, half) as running:
        assert_ends_well(running, updates, "site-3")
        reply = running.resume(updates["site-1"])  # the round is over, and its file gone: there is a receipt still
        secagg.Receipt.from_bytes(reply.receipt).check(updates["site-1"], signed.project)


def test_a_round_that_could_have_ended(signed: Signed, updates: dict[str, secagg.Update], half: Path) -> None:
    """The server died before it wrote the aggregate: it does so when it starts."""
    updates["site-3"].save(half / "round-0" / "site-3.update")
    with serving(signed, half) as running:
        assert_ends_well(running, updates)


def test_attempts_are_counted_on(
    signed: Signed, updates: dict[str, secagg.Update], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(signed, tmp_path / "run", round_timeout=0.5) as running:
        running.send(updates["site-1"])
        wait_until(lambda: running.server.status().attempt >= 3)
    with serving(signed, tmp_path / "run") as running:
        assert running.server.status().attempt >= 3
        assert running.server.status().added == ("site-1",)
    later = json.dumps({"round": 7, "stage": "update", "attempt": 3, "sites": [], "skipped": []})
    none = json.dumps({"round": 0, "stage": "update", "attempt": 3, "sites": [], "skipped": 7})
    other = json.dumps({"round": 0, "stage": "../x", "attempt": 3, "sites": [], "skipped": []})
    for text in ("rubbish", "[]", '{"round": 0}', '{"round": 0, "attempt": "x", "sites": 7}', "", none, other, later):
        (tmp_path / "run" / "roster.json").write_text(text)
        caplog.clear()
        with serving(signed, tmp_path / "run") as running:  # no reason to stop: what was added is in the files
            assert (running.server.status().attempt, running.server.status().added) == (1, ("site-1",))
        [warning] = [item.getMessage() for item in caplog.records if "roster.json" in item.getMessage()]
        assert (
            "is of round 7, the stored aggregates lead to round 0 only" if text == later else "cannot be read"
        ) in warning


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "rubbish", "other site", "other round", "unsigned"])
def test_a_damaged_file_is_put_aside(
    signed: Signed,
    updates: dict[str, secagg.Update],
    half: Path,
    damage: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The others stay; its site, which is waited for, may upload it again."""
    path = half / "round-0" / "site-1.update"
    blob = path.read_bytes()
    client = secagg.Client(signed.config, signed.federation.keys.client, "site-1")
    path.write_bytes(
        {
            "flip": lambda: blob[:-200] + bytes([blob[-200] ^ 1]) + blob[-199:],
            "cut": lambda: blob[:-1],
            "empty": lambda: b"",
            "rubbish": lambda: bytes(len(blob)),
            "other site": lambda: updates["site-3"].to_bytes(),
            "other round": lambda: signed.site().encrypt(SMALL, round=1, base=BASE).to_bytes(),
            "unsigned": lambda: client.encrypt(SMALL, round=0, base=BASE).to_bytes(),
        }[damage]()
    )
    caplog.set_level(logging.ERROR)
    with serving(signed, half) as running:
        status = running.server.status()
        assert (status.added, status.waiting_for) == (("site-2",), ("site-1", "site-3"))
        [record] = [item for item in caplog.records if "left out" in item.message]
        assert "round 0: the stored update of site-1 is left out: " in record.message
        assert (half / "round-0" / "site-1.refused").exists()
    with serving(signed, half) as running:  # and it is waited for still when the server starts once more
        assert running.server.status().waiting_for == ("site-1", "site-3")
        assert_ends_well(running, updates, "site-1", "site-3")


def test_leftovers_of_rounds_that_are_over(signed: Signed, updates: dict[str, secagg.Update], half: Path) -> None:
    """The server died after it had written the aggregate, and before it had tidied up."""
    with serving(signed, half) as running:
        assert_ends_well(running, updates, "site-3")
    (half / "round-0").mkdir()
    updates["site-1"].save(half / "round-0" / "site-1.update")
    updates["site-2"].save(half / "spool" / "site-2.part")
    (half / ".aggregate-0.secagg.x").write_bytes(b"half an aggregate")
    (half / "notes.txt").write_text("not ours")
    with serving(signed, half) as running:
        assert running.server.status().round == 1
        assert running.server.status().added == ()
        assert running.spool() == []
    assert sorted(path.name for path in half.iterdir()) == [
        "aggregate-0.secagg",
        "lock",
        "notes.txt",
        "project.secagg",
        "roster.json",
        "round-1",
        "rounds.jsonl",
        "spool",
    ]


def test_a_site_that_was_revoked_meanwhile(
    signed: Signed, updates: dict[str, secagg.Update], half: Path, caplog: pytest.LogCaptureFixture
) -> None:
    later = replace(signed, project=signed.without("site-1"))
    with serving(later, half) as running:
        status = running.server.status()
        assert (status.attempt, status.added, status.waiting_for) == (2, (), ("site-2", "site-3"))
        assert "round 0 voided, site-1 has been revoked; added: site-1, site-2" in caplog.text
        with pytest.raises(ManifestMismatchError, match="of serial 1: join again, and encrypt again"):
            running.send(updates["site-2"])
        again = {name: later.site(name).encrypt(SMALL, round=0, base=BASE) for name in ("site-2", "site-3")}
        assert_ends_well(running, again, *again)


def test_a_key_that_was_rotated(
    signed: Signed, updates: dict[str, secagg.Update], half: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Rounds count on, and the next one begins from the same global model."""
    with serving(signed, half) as running:
        assert_ends_well(running, updates, "site-3")
        base = running.server.status().base
        assert base is not None
        old = {name: signed.site(name).encrypt(SMALL, round=1, base=base) for name in signed.names}
        running.send(old["site-1"])
    new = rotated(signed, 1)
    with serving(new, half) as running:
        status = running.server.status()
        assert (status.round, status.epoch, status.added, status.aggregates) == (1, 1, (), (0,))
        assert status.base == base
        assert "the stored update of site-1 is left out: KeyMismatchError" in caplog.text
        with pytest.raises(ConfigError, match="another server works"):
            serving(new, half).__enter__()
        aggregate = running.run_round(1)
        assert aggregate.header.epoch == 1
        assert aggregate.header.base == base
    with pytest.raises(ConfigError, match="was served under manifest 1, this kit has 0: unpack the newest kit"):
        serving(signed, half).__enter__()
    with pytest.raises(ConfigError, match="was served under another manifest 1 than this kit's"):
        serving(rotated(signed, 1), half).__enter__()
    (half / "project.secagg").unlink()  # as in the run folder of an earlier release
    with pytest.raises(ConfigError, match="is of epoch 1, this key of epoch 0: use the newest kit"):
        serving(signed, half).__enter__()
    with pytest.raises(ConfigError, match="was made under another key; use another run folder"):
        serving(rotated(signed, 1), half).__enter__()
    with serving(rotated(signed, 5), half) as running:
        assert running.server.status().round == 2


def test_a_rotation_in_the_first_round(
    signed: Signed, updates: dict[str, secagg.Update], half: Path, caplog: pytest.LogCaptureFixture
) -> None:
    new = rotated(signed, 1)
    with serving(new, half) as running:
        assert running.server.status().added == ()
        assert caplog.text.count("is left out: KeyMismatchError") == 2
        assert running.server.status().base is None
        running.run_round(0)
    assert [json.loads(line)["round"] for line in (half / "rounds.jsonl").read_text().splitlines()] == [0]


def listing(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in (folder, *folder.rglob("*"))}


def assert_refused(signed: Signed, folder: Path, kind: type[Exception], message: str) -> None:
    """What a server refuses at its start, `secagg doctor` can tell beforehand, and leaves no trace of that."""
    before = listing(folder)
    with pytest.raises(kind, match=message):
        check_stored(folder, signed.federation.keys.server, signed.project)
    assert listing(folder) == before
    for _ in range(2):  # the lock is given back
        with pytest.raises(kind, match=message):
            serving(signed, folder).__enter__()


def test_the_manifest_that_was_served_last(signed: Signed, half: Path) -> None:
    """A site that a later manifest has revoked is not let in again by an earlier one."""
    later = replace(signed, project=signed.without("site-1"))
    before = (half / "project.secagg").read_bytes()
    assert before == signed.project.signed
    with serving(signed, half):
        pass
    for _ in range(2):
        with serving(later, half):
            assert (half / "project.secagg").read_bytes() == later.project.signed
    check_stored(half, later.federation.keys.server, later.project)
    assert_refused(signed, half, ConfigError, "run was served under manifest 1, this kit has 0: unpack the newest kit")
    with serving(signed, half, project=None, identity=None):
        pass  # without a project there is nothing to compare


def test_a_run_folder_of_another_federation(signed: Signed, half: Path) -> None:
    """It says so before anything of epochs, which count anew in each federation."""
    own = secagg.Identity.generate()
    project = replace(signed.project, name="another", authority=own.public, serial=7)
    other = replace(signed, authority=own, project=secagg.Project.from_bytes(project.sign(own)))
    assert_refused(other, half, ConfigError, "of another federation than this kit, of project another; use another run")
    other = replace(rotated(signed, 3), authority=own)
    other = replace(other, project=other.reissue(authority=own.public))
    assert_refused(other, half, ConfigError, "is of another federation")


def test_a_damaged_manifest_in_the_run_folder(signed: Signed, half: Path) -> None:
    (half / "project.secagg").write_bytes(b"rubbish")
    assert_refused(signed, half, ConfigError, "run/project.secagg' is not .*; restore the run folder from a backup, or")


def test_a_folder_that_is_not_there_is_as_good_as_empty(signed: Signed, tmp_path: Path) -> None:
    check_stored(tmp_path / "none", signed.federation.keys.server, signed.project)
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot use the run folder .*file"):
        check_stored(tmp_path / "file", signed.federation.keys.server, signed.project)


@pytest.mark.parametrize("damage", ["rubbish", "cut", "other round", "update"])
def test_a_damaged_aggregate_stops_the_start(
    signed: Signed, updates: dict[str, secagg.Update], half: Path, damage: str
) -> None:
    """What the next round begins from is not known then: an operator must look."""
    with serving(signed, half) as running:
        assert_ends_well(running, updates, "site-3")
    path = half / "aggregate-0.secagg"
    if damage == "rubbish":
        path.write_bytes(b"rubbish")
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "other round":
        path = path.rename(half / "aggregate-3.secagg")
    else:
        updates["site-1"].save(path)
    kind = FormatError if damage in ("rubbish", "cut") else ConfigError
    assert_refused(signed, half, kind, f"{path.name}.*restore the run folder from a backup, or use another")


def test_a_round_after_the_last_is_not_known(signed: Signed, half: Path) -> None:
    with serving(signed, half) as running, running.session("site-1") as session:
        for round in (1, 2**32 - 1):
            with pytest.raises(RoundMismatchError, match=f"round {round} has not begun; round 0 is open"):
                session.download(round, half.with_name("none"))
        request = DownloadRequest("aggregate", 2**62)  # which no session sends
        with pytest.raises(RoundMismatchError, match=f"round {2**62} has not begun; round 0 is open"):
            list(session._link.download(request, 60))
