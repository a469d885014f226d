"""Rounds that begin with a calibration, without a network."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from calibrating import CONFIG, FIRST, assert_mean, calibrating, calibration_of, update_of
from federation import Federation as Keys
from signed import Signed, sign_federation

import secagg
from secagg.errors import (
    CapacityError,
    DuplicateError,
    FormatError,
    KeyMismatchError,
    LayoutError,
    ManifestMismatchError,
    MismatchError,
    QuorumError,
    QuotaError,
    RoundMismatchError,
    ScalesMismatchError,
    SecAggError,
    StateError,
    StorageError,
    TransportError,
)
from secagg.protocol import BusyError, Chunk, DownloadRequest, SkipRequest, UploadReply
from secagg.protocol.chunks import chunks_from
from secagg.server import Call, Federation, Limits
from secagg.server.run_folder import RunFolder
from secagg.server.stored import check_stored

T = TypeVar("T")

SITES = ("site-1", "site-2", "site-3")


class Line:
    """A connection that lasts for some polls."""

    def __init__(self, polls: float = float("inf")) -> None:
        self.polls = polls

    def is_active(self) -> bool:
        self.polls -= 1
        return self.polls > 0

    def cancel(self) -> None:
        raise AssertionError("nothing is cancelled here")


class World:
    """A server, and its sites."""

    def __init__(self, signed: Signed, folder: Path, **options: Any) -> None:
        self.signed, self.folder = signed, folder
        self.options = {"round_timeout": 1000.0} | options
        self.sites = {name: signed.site(name) for name in signed.names}
        self.server = self._start()

    def _start(self) -> Federation:
        signed, key = self.signed, self.signed.federation.keys.server
        arguments = {"project": signed.project, "identity": signed.server, "certified": False}
        return Federation(signed.config, key, self.folder, **(arguments | self.options))

    def restart(self, signed: Signed | None = None) -> None:
        """Start a server again on the folder, with another kit perhaps."""
        self.server.close()
        self.signed = signed or self.signed
        self.server = self._start()

    def call(self, make: Callable[[Call], T], line: Line | None = None) -> T:
        with self.server.call((), line or Line(), "here") as call:
            return make(call)

    def join(self, *names: str) -> None:
        for name in names:
            self.call(lambda call, name=name: call.join(name))

    def skip(self, name: str, round: int = 0) -> None:
        self.call(lambda call: call.skip(SkipRequest(name, round)))

    def resume(self, update: secagg.Update) -> UploadReply:
        return self.call(lambda call: call.resume(update.header.head))

    def send(self, *updates: secagg.Update) -> list[UploadReply]:
        return [self.call(lambda call, own=own: call.upload(chunks_from(own, 0))) for own in updates]

    def calibrate(self, *names: str, round: int = 0, base: bytes | None = None) -> list[secagg.Update]:
        """Let sites join and calibrate; return what they sent."""
        self.join(*names)
        sent = [calibration_of(self.sites[name], round, base) for name in names]
        for reply in self.send(*sent):
            assert (reply.already_added, reply.receipt) == (False, b"")
        return sent

    def update(self, *names: str, round: int = 0) -> list[secagg.Update]:
        """Let sites join and upload under the scales of a round; return what they sent."""
        self.join(*names)
        sent = [update_of(self.sites[name], self.download("scales", round)) for name in names]
        for reply in self.send(*sent):
            assert not reply.already_added
            assert reply.receipt
        return sent

    def download(
        self, kind: str, round: int = 0, own: secagg.Update | None = None, line: Line | None = None
    ) -> secagg.Update:
        request = DownloadRequest(kind, round, b"" if own is None else nonce(own))

        def take(call: Call) -> bytes:
            return b"".join(bytes(chunk.data) for chunk in call.download(request))

        return secagg.Update.from_bytes(self.call(take, line))

    def waits(self, kind: str, round: int = 0, own: secagg.Update | None = None) -> None:
        """Hold that whoever asks for this has to wait."""
        with pytest.raises(BusyError, match="the server is stopping"):
            self.download(kind, round, own, Line(polls=1))

    @property
    def state(self) -> tuple[int, str, int, tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
        """Round, stage, attempt, who was added, who skips, who is waited for."""
        now = self.server.status()
        return now.round, now.stage, now.attempt, now.added, now.skipped, now.waiting_for

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "rounds.jsonl").read_text().splitlines()]

    def files(self) -> list[str]:
        """All but what every run folder has."""
        paths = (path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file())
        usual = {"lock", "roster.json", "project.secagg", "rounds.jsonl"}
        return sorted(str(path) for path in paths if path.name not in usual)

    def ends_well(self, *names: str, round: int = 0) -> None:
        aggregate = self.download("aggregate", round)
        assert sorted(aggregate.header.sites) == sorted(names)
        assert aggregate.header.calibration == self.download("scales", round).digest()
        assert_mean(self.signed.site(names[0]), aggregate)


@contextmanager
def opened(signed: Signed, folder: Path, **options: Any) -> Iterator[World]:
    world = World(signed, folder, **options)
    try:
        yield world
    finally:
        world.server.close()


@pytest.fixture(scope="module")
def signed() -> Signed:
    return calibrating()


@pytest.fixture
def world(signed: Signed, tmp_path: Path) -> Iterator[World]:
    with opened(signed, tmp_path / "run") as world:
        yield world


def nonce(update: secagg.Update) -> bytes:
    return update.header.contributions[0].nonce


def wait_until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.02)


def under(signed: Signed, project: secagg.Project, world: World | None = None) -> Signed:
    """The federation under another manifest; sites of `world` that are not revoked take it over."""
    later = replace(signed, project=project)
    if world is not None:
        active = [site.name for site in project.sites if not site.revoked]
        world.sites = {name: later.site(name) for name in active}
    return later


# A round


def test_two_stages(world: World) -> None:
    world.join(*SITES)
    assert world.state == (0, "calibration", 1, (), (), SITES)
    first, second = world.calibrate("site-1", "site-2")
    assert world.state == (0, "calibration", 1, ("site-1", "site-2"), (), ("site-3",))
    assert world.files() == ["round-0/site-1.calibration", "round-0/site-2.calibration"]
    for kind, own in (("scales", first), ("scales", None), ("aggregate", None)):
        world.waits(kind, own=own)
    world.calibrate("site-3")
    assert world.state == (0, "update", 1, (), (), SITES)
    assert "scales-0.secagg" in world.files()
    scales = world.download("scales", own=second)
    assert (scales.header.kind, sorted(scales.header.sites)) == ("scales", list(SITES))
    [own] = world.update("site-1")
    world.waits("aggregate", own=own)
    world.update("site-2", "site-3")
    assert world.state == (1, "calibration", 1, (), (), SITES)
    world.ends_well(*SITES)


def test_what_is_recorded(world: World) -> None:
    world.join(*SITES)
    world.calibrate("site-1", "site-2")
    world.skip("site-3")
    world.server.start()
    world.update("site-1", "site-2")
    calibrated, completed = world.records
    assert (calibrated["round"], calibrated["outcome"], calibrated["attempt"]) == (0, "calibrated", 1)
    assert [upload["site"] for upload in calibrated["uploads"]] == ["site-1", "site-2"]
    assert (calibrated["skipped"], calibrated["missing"], calibrated["reason"]) == (["site-3"], [], "")
    assert calibrated["nbytes"] == world.download("scales").nbytes
    assert (completed["round"], completed["outcome"], completed["skipped"]) == (0, "completed", ["site-3"])
    assert completed["nbytes"] == world.download("aggregate").nbytes > calibrated["nbytes"]


def test_sums_are_kept_for_two_rounds(world: World) -> None:
    base = None
    for round in range(4):
        world.calibrate("site-1", "site-2", round=round, base=base)
        world.update("site-1", "site-2", round=round)
    world.calibrate("site-1", "site-2", round=4)
    world.restart()  # clears
    kept = [
        f"{kind}-{round}.secagg" for kind, rounds in (("aggregate", (2, 3)), ("scales", (2, 3, 4))) for round in rounds
    ]
    assert [name for name in world.files() if "round" not in name] == kept
    for round in (2, 3):
        world.ends_well("site-1", "site-2", round=round)
    assert world.download("scales", 4).header.round == 4
    with pytest.raises(RoundMismatchError, match="the scales of round 1 are not kept any more; kept are: 2, 3, 4"):
        world.download("scales", 1)
    with pytest.raises(RoundMismatchError, match="round 5 has not begun"):
        world.download("scales", 5)


def test_rounds_of_one_base(signed: Signed, tmp_path: Path) -> None:
    base = signed.site().base(FIRST)
    with opened(replace(signed, project=signed.reissue(base=base)), tmp_path) as world:
        with pytest.raises(MismatchError, match="names no global model"):
            world.calibrate("site-1")
        world.calibrate("site-1", "site-2", base=base)
        assert world.server.status().base == base
        world.update("site-1", "site-2")
        following = world.download("aggregate").next_base
        world.calibrate("site-1", round=1, base=following)
        assert world.server.status().base == following


# Who takes part


def test_who_skips_is_waited_for_in_neither_stage(world: World) -> None:
    world.server.start()
    world.join(*SITES)
    world.calibrate("site-1", "site-2")
    world.skip("site-3")
    world.download("scales")
    assert world.state == (0, "update", 1, (), ("site-3",), ("site-1", "site-2"))
    world.update("site-1", "site-2")
    world.ends_well("site-1", "site-2")
    assert world.state == (1, "calibration", 1, (), (), SITES)


def test_who_has_calibrated_may_skip(world: World) -> None:
    world.server.start()
    world.join(*SITES)
    world.calibrate(*SITES[:2])
    world.skip("site-1")
    assert world.state == (0, "calibration", 1, SITES[:2], ("site-1",), ("site-3",))
    world.calibrate("site-3")
    assert world.state == (0, "update", 1, (), ("site-1",), SITES[1:])
    world.update(*SITES[1:])
    world.ends_well(*SITES[1:])


def test_a_site_that_missed_the_calibration_takes_part(world: World) -> None:
    world.calibrate("site-1", "site-2")
    world.join("site-3")
    world.update("site-1", "site-2")
    assert world.state == (0, "update", 1, ("site-1", "site-2"), (), ("site-3",))
    world.update("site-3")
    world.ends_well(*SITES)
    assert world.state == (1, "calibration", 1, (), (), SITES)


def test_a_site_that_uploads_without_having_joined(world: World) -> None:
    world.calibrate("site-1", "site-2")
    for name in ("site-3", "site-1"):
        world.send(update_of(world.sites[name], world.download("scales")))
    assert world.state == (0, "update", 1, ("site-1", "site-3"), (), ("site-2",))


def test_at_the_timeout_it_goes_on_without_the_missing(signed: Signed, tmp_path: Path) -> None:
    with opened(signed, tmp_path, round_timeout=0.5) as world:
        world.join(*SITES)
        world.calibrate("site-1", "site-2")
        world.server.start()
        scales = world.download("scales")
        assert sorted(scales.header.sites) == ["site-1", "site-2"]
        assert world.records[0]["missing"] == ["site-3"]


def test_a_calibration_without_quorum_is_repeated(signed: Signed, tmp_path: Path) -> None:
    with opened(signed, tmp_path, round_timeout=0.5) as world:
        [own] = world.calibrate("site-1")
        world.server.start()
        for kind, wanted in (("scales", own), ("aggregate", None)):
            with pytest.raises(QuorumError, match="round 0 has 1 of at least 2 calibrations after 0.5 s; it goes on"):
                world.download(kind, own=wanted)
        assert world.state[:2] == (0, "calibration")
        assert world.state[2] > 1
        record = world.records[0]
        assert (record["outcome"], record["missing"]) == ("failed", ["site-2", "site-3"])
        assert record["reason"] == "fewer calibrations than min_clients at the round timeout"
        assert world.send(own) == [UploadReply(already_added=True)]
        world.calibrate("site-2")
        assert sorted(world.download("scales", own=own).header.sites) == ["site-1", "site-2"]
        assert world.server.status().attempt == 1


def test_updates_without_quorum_stay_under_their_scales(signed: Signed, tmp_path: Path) -> None:
    with opened(signed, tmp_path, round_timeout=0.5) as world:
        world.calibrate("site-1", "site-2")
        scales = world.download("scales").digest()
        [own] = world.update("site-1")
        world.server.start()
        with pytest.raises(QuorumError, match="round 0 has 1 of at least 2 updates after"):
            world.download("aggregate", own=own)
        assert world.state[1] == "update"
        assert world.download("scales").digest() == scales
        world.update("site-3")
        world.ends_well("site-1", "site-3")


# What is refused


def test_an_update_before_the_scales(world: World, signed: Signed, tmp_path: Path) -> None:
    with opened(signed, tmp_path / "other") as other:
        other.calibrate("site-1", "site-2")
        early = update_of(world.sites["site-1"], other.download("scales"))
    for send in (world.resume, world.send):
        with pytest.raises(
            ScalesMismatchError, match="the update of 'site-1' is of round 0, which has no scales yet: upload a"
        ):
            send(early)
    assert world.state == (0, "calibration", 1, (), (), ())
    assert world.files() == []
    world.calibrate("site-1", "site-2")
    for send in (world.resume, world.send):
        with pytest.raises(ScalesMismatchError, match="made under other scales than those of round 0: calibrate again"):
            send(early)
    assert world.state == (0, "update", 1, (), (), ("site-1", "site-2"))


def test_a_calibration_after_the_scales(world: World) -> None:
    known, _ = world.calibrate("site-1", "site-2")
    for name in ("site-1", "site-3"):
        for send in (world.resume, world.send):
            with pytest.raises(RoundMismatchError, match=f"'{name}' is of round 0, whose scales are there already"):
                send(calibration_of(world.sites[name]))
    assert world.state == (0, "update", 1, (), (), ("site-1", "site-2"))
    world.update("site-1", "site-2")
    for reply in (world.resume(known), *world.send(known)):
        assert (reply.already_added, reply.receipt) == (True, b"")
    with pytest.raises(RoundMismatchError, match="the calibration of 'site-3' is of round 0; round 1 is open"):
        world.send(calibration_of(world.sites["site-3"]))


def test_a_calibration_of_a_later_round(world: World) -> None:
    with pytest.raises(RoundMismatchError, match="the calibration of 'site-1' is of round 1; round 0 is open"):
        world.send(calibration_of(world.sites["site-1"], 1))
    assert world.state == (0, "calibration", 1, (), (), ())


def test_another_calibration_of_a_site(world: World) -> None:
    [own] = world.calibrate("site-1")
    for send in (world.resume, world.send):
        with pytest.raises(DuplicateError, match="another calibration of 'site-1' is already in the sum of round 0"):
            send(calibration_of(world.sites["site-1"]))
    for reply in (world.resume(own), *world.send(own)):
        assert (reply.already_added, reply.receipt) == (True, b"")
    assert world.state == (0, "calibration", 1, ("site-1",), (), ())


def test_calibrations_that_are_unfit(world: World, signed: Signed) -> None:
    world.calibrate("site-1")
    site = world.sites["site-2"]
    strange = secagg.generate_keys(signed.config)
    other = secagg.Client(signed.config, strange.client, "site-2")
    alone = signed.site("site-2", project=None, identity=None)
    unfit: list[tuple[secagg.Update, type[SecAggError]]] = [
        (other.calibrate(FIRST), KeyMismatchError),
        (alone.calibrate(FIRST), ManifestMismatchError),
        (site.calibrate({**FIRST, "more": FIRST["b"]}), LayoutError),
    ]
    for calibration, kind in unfit:
        for send in (world.resume, world.send):
            with pytest.raises(kind):
                send(calibration)
    with pytest.raises(
        MismatchError, match="names a global model that it began from, and the sum of round 0 names none"
    ):
        world.send(site.calibrate(FIRST, base=bytes(32)))
    whole = calibration_of(site)
    *chunks, tail = (bytes(chunk.data) for chunk in chunks_from(whole, 0))
    for damaged in (
        [chunks[0], bytes([chunks[1][0] ^ 1]) + chunks[1][1:], *chunks[2:], tail],
        [*chunks, tail[:-1]],
        [*chunks, bytes([tail[0] ^ 1]) + tail[1:]],
    ):
        with pytest.raises(FormatError):
            world.call(lambda call, damaged=damaged: call.upload(map(Chunk, damaged)))
    assert world.state == (0, "calibration", 1, ("site-1",), (), ("site-2",))  # its head was fit
    assert world.files() == ["round-0/site-1.calibration"]


def test_a_site_more_than_planned(signed: Signed, tmp_path: Path) -> None:
    config = secagg.Config.from_dict({**CONFIG, "aggregation": {"min_clients": 2, "max_clients": 2}})
    small = sign_federation(Keys(config, secagg.generate_keys(config)))
    with opened(small, tmp_path) as world:
        world.join("site-1", "site-2")
        with pytest.raises(CapacityError, match="'site-3' is one site too many"):
            world.calibrate("site-3")


def test_scales_are_no_upload(world: World) -> None:
    world.calibrate("site-1", "site-2")
    with pytest.raises(MismatchError, match="scales cannot be uploaded; upload an update, a calibration, a model"):
        world.resume(world.download("scales"))


def test_waiting_with_a_calibration_that_is_not_in_the_sum(world: World) -> None:
    world.join("site-2")
    with pytest.raises(StateError, match="the calibration is not in the sum of round 0; upload it again"):
        world.download("scales", own=calibration_of(world.sites["site-1"]))


def test_a_federation_that_has_no_calibrations(signed: Signed, tmp_path: Path) -> None:
    he = {"lib": "flashe", "config": {"scheme": "FLASHE", "value_bits": 6}}
    config = secagg.Config.from_dict({"he": he, "aggregation": {**CONFIG["aggregation"], "max_abs": 1.0}})
    fixed = sign_federation(replace(signed.federation, config=config))
    foreign = calibration_of(signed.site())
    with opened(fixed, tmp_path) as world:
        assert world.server.status().stage == ""
        for send in (world.resume, world.send):
            with pytest.raises(MismatchError, match="'site-1' calibrates, and no round of this federation has a cali"):
                send(foreign)
        with pytest.raises(MismatchError, match="no round of this federation has scales"):
            world.download("scales")
        assert world.state == (0, "", 1, (), (), ())


def test_a_head_that_is_far_too_long(world: World) -> None:
    world.calibrate("site-1")
    site = world.sites["site-2"]
    long = site.calibrate({f"{number:0200}": FIRST["b"] + number for number in range(10)}).header.head
    with pytest.raises(FormatError, match="bytes are no head for this federation's model"):
        world.call(lambda call: call.resume(long))


def test_limits_hold_for_calibrations(signed: Signed, tmp_path: Path) -> None:
    own = calibration_of(signed.site())
    for limits in (Limits(max_upload_nbytes=own.nbytes - 1), Limits(disk_quota=2 * own.nbytes)):
        with opened(signed, tmp_path, limits=limits) as world:
            with pytest.raises(QuotaError, match=f"the calibration of 'site-1' announces {own.nbytes} bytes"):
                world.send(own)
            assert world.files() == []


def test_a_calibration_that_breaks_off_goes_on(world: World) -> None:
    own = calibration_of(world.sites["site-1"])
    head, first, *_ = (Chunk(bytes(chunk.data), chunk.frame) for chunk in chunks_from(own, 0))
    with pytest.raises(BusyError, match="the stream ended"):
        world.call(lambda call: call.upload(iter([head, first])))
    assert world.files() == ["spool/site-1.calibration"]
    world.restart()
    assert world.state == (0, "calibration", 1, (), (), ("site-1",))
    assert world.resume(own).frame == 1
    world.call(lambda call: call.upload(chunks_from(own, 1)))
    assert world.state[3] == ("site-1",)


def test_a_calibration_that_is_late_in_coming(signed: Signed, tmp_path: Path) -> None:
    """The others' end while it is on its way."""
    with opened(signed, tmp_path) as world:
        own = calibration_of(world.sites["site-3"])
        chunks = chunks_from(own, 0)

        def come() -> Iterator[Chunk]:
            for index, chunk in enumerate(chunks):
                yield chunk
                if index == 0:
                    world.skip("site-3")
                    world.calibrate("site-1", "site-2")

        with pytest.raises(RoundMismatchError, match="the calibrations of round 0 ended without that of 'site-3'"):
            world.call(lambda call: call.upload(come()))
        assert world.state[:2] == (0, "update")
        assert not [name for name in world.files() if "spool" in name]


# What lasts


@pytest.mark.parametrize("times", [1, 2])
def test_a_restart_while_sites_calibrate(world: World, times: int) -> None:
    world.join(*SITES)
    first, _ = world.calibrate("site-1", "site-2")
    before = world.state
    for _ in range(times):
        world.restart()
        assert world.state == before == (0, "calibration", 1, SITES[:2], (), ("site-3",))
        assert world.send(first) == [UploadReply(already_added=True)]
    world.calibrate("site-3")
    assert sorted(world.download("scales", own=first).header.sites) == list(SITES)
    world.update(*SITES)
    world.ends_well(*SITES)


@pytest.mark.parametrize("added", [0, 1])
def test_a_restart_while_sites_upload(world: World, added: int) -> None:
    world.join(*SITES)
    calibrations = world.calibrate("site-1", "site-2")
    world.server.start()
    world.skip("site-3")
    scales = world.download("scales")
    updates = world.update("site-1") if added else []
    before = world.state
    world.restart()
    assert world.state == before
    assert before[:2] == (0, "update")
    assert before[4] == ("site-3",)
    assert world.download("scales").digest() == scales.digest()
    assert world.send(*calibrations) == [UploadReply(already_added=True)] * 2
    for own in updates:
        assert world.resume(own).receipt
    world.server.start()
    world.update("site-2") if added else world.update("site-1", "site-2")
    world.ends_well("site-1", "site-2")


def test_a_server_that_died_before_it_stored_the_scales(world: World) -> None:
    """It does so when it starts again."""
    world.join("site-1", "site-2")
    world.calibrate("site-1")
    world.server.close()
    calibration_of(world.sites["site-2"]).save(world.folder / "round-0" / "site-2.calibration")
    world.restart()
    world.server.start()
    assert sorted(world.download("scales").header.sites) == ["site-1", "site-2"]
    assert world.state == (0, "update", 1, (), (), ("site-1", "site-2"))


@pytest.mark.parametrize("roster", ["that of before", "none"])
def test_a_server_that_died_after_it_stored_the_scales(world: World, roster: str) -> None:
    """It had not written down yet that another stage is open."""
    world.join("site-1", "site-2", "site-3")
    world.calibrate("site-1")
    world.skip("site-3")
    path = world.folder / "roster.json"
    before = path.read_bytes()
    world.calibrate("site-2")
    assert json.loads(path.read_text())["stage"] == "update"
    path.unlink()
    if roster == "that of before":
        path.write_bytes(before)
    world.restart()
    skipped = ("site-3",) if roster == "that of before" else ()
    assert world.state == (0, "update", 1, (), skipped, ("site-1", "site-2"))
    if skipped:
        assert json.loads(path.read_text())["stage"] == "update"
    world.server.start()
    world.update("site-1", "site-2")
    world.ends_well("site-1", "site-2")


def test_a_server_that_died_in_a_later_attempt(signed: Signed, tmp_path: Path) -> None:
    with opened(signed, tmp_path, round_timeout=0.3) as world:
        world.calibrate("site-1")
        world.server.start()
        wait_until(lambda: world.server.status().attempt >= 3)
        world.options["round_timeout"] = 1000.0
        world.restart()
        assert world.state[1:4] == ("calibration", world.state[2], ("site-1",))
        assert world.state[2] >= 3
        world.calibrate("site-2")
        assert world.state[:3] == (0, "update", 1)


@pytest.mark.parametrize("damage", ["flip", "cut", "other site", "other round"])
def test_a_damaged_calibration_is_left_out(world: World, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    world.join(*SITES)
    world.calibrate("site-1", "site-2")
    world.server.close()
    path = world.folder / "round-0" / "site-1.calibration"
    blob = bytearray(path.read_bytes())
    blob[len(blob) // 2] ^= 1
    if damage == "other site":
        blob = bytearray((path.parent / "site-2.calibration").read_bytes())
    elif damage == "other round":
        blob = bytearray(calibration_of(world.sites["site-1"], 1).to_bytes())
    path.write_bytes(blob[:-1] if damage == "cut" else blob)
    world.restart()
    assert "the stored calibration of site-1 is left out" in caplog.text
    assert world.state == (0, "calibration", 1, ("site-2",), (), ("site-1", "site-3"))
    assert (path.parent / "site-1.refused").exists()
    world.calibrate("site-1", "site-3")
    assert world.state[:2] == (0, "update")


def test_scales_that_are_damaged(world: World, signed: Signed) -> None:
    """As a damaged aggregate: acknowledged updates are under them, or could be."""
    world.calibrate("site-1", "site-2")
    key = signed.federation.keys.server
    world.server.close()
    path = world.folder / "scales-0.secagg"
    check_stored(world.folder, key, signed.project)
    whole = path.read_bytes()
    path.write_bytes(b"rubbish")
    for use in (world.restart, lambda: check_stored(world.folder, key, signed.project)):
        with pytest.raises(FormatError, match=r"scales-0\.secagg: .*; restore the run folder from a backup"):
            use()
    shutil.copy(path.with_name("project.secagg"), path)
    with pytest.raises(FormatError, match=r"scales-0\.secagg"):
        check_stored(world.folder, key, signed.project)
    path.with_name("scales-1.secagg").write_bytes(whole)
    path.write_bytes(whole)
    with pytest.raises(secagg.errors.ConfigError, match=r"scales-1\.secagg is not the scales of round 1"):
        check_stored(world.folder, key, signed.project)
    path.with_name("scales-1.secagg").unlink()
    world.restart()
    assert world.state[:2] == (0, "update")


def test_scales_that_are_lost(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """By no crash, but by whoever works on the folder: sites calibrate again, and no update is under other scales."""
    world.calibrate("site-1", "site-2")
    lost = world.update("site-1")
    (world.folder / "scales-0.secagg").unlink()
    world.restart()
    assert "the stored update of site-1 is left out: ScalesMismatchError" in caplog.text
    assert world.state[:4] == (0, "calibration", 1, ("site-1", "site-2"))
    world.join("site-3")
    world.calibrate("site-3")
    with pytest.raises(ScalesMismatchError, match="under other scales"):
        world.send(*lost)
    world.update(*SITES)
    world.ends_well(*SITES)


def test_scales_that_no_site_can_use(world: World) -> None:
    """One site's program was another. As docs/operators.md says: both files go, and the calibration begins again."""
    world.calibrate("site-1", "site-2", "site-3")
    unusable = world.download("scales").digest()
    world.server.close()
    (world.folder / "scales-0.secagg").unlink()
    (world.folder / "round-0" / "site-3.calibration").unlink()
    world.restart()
    assert world.state[:4] == (0, "calibration", 1, ("site-1", "site-2"))
    world.join("site-3")
    [mended] = world.calibrate("site-3")
    scales = world.download("scales", own=mended)
    assert scales.digest() != unusable
    world.update(*SITES)
    world.ends_well(*SITES)


def test_scales_that_cannot_be_stored(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: RunFolder, summed: secagg.Update) -> None:
        raise StorageError(f"cannot write {folder.path}/scales-0.secagg: No space left on device")

    world.options["round_timeout"] = 1.0
    world.restart()
    world.server.start()
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_sum", fail)
        own, _ = world.calibrate("site-1", "site-2")
        status = world.server.status()
        assert (status.stage, status.trouble) == (
            "calibration",
            "cannot write scales-0.secagg: No space left on device",
        )
        with pytest.raises(TransportError, match="could not store the scales of round 0; its log says why"):
            world.download("scales", own=own)
    assert world.records[0]["reason"] == "the scales could not be stored"
    assert world.send(own) == [UploadReply(already_added=True)]
    assert sorted(world.download("scales").header.sites) == ["site-1", "site-2"]
    assert world.server.status().trouble == ""


# Another manifest


@pytest.mark.parametrize("stage", ["calibration", "update without any", "update"])
def test_a_site_that_is_revoked_voids_the_round(world: World, signed: Signed, stage: str) -> None:
    world.join(*SITES)
    calibrations = world.calibrate(*SITES[:2])
    updates: list[secagg.Update] = []
    if stage != "calibration":
        calibrations += world.calibrate("site-3")
        if stage == "update":
            updates += world.update("site-1", "site-3")
    world.restart(under(signed, signed.without("site-3"), world))
    assert world.state == (0, "calibration", 2, (), (), ("site-1", "site-2"))
    assert world.files() == []
    record = world.records[-1]
    assert (record["outcome"], record["reason"]) == ("voided", "site-3 has been revoked")
    gone = {"calibration": SITES[:2], "update without any": (), "update": ("site-1", "site-3")}[stage]
    assert [upload["site"] for upload in record["uploads"]] == list(gone)
    for own in (calibrations[0], *updates[:1]):
        with pytest.raises(StateError, match="is not in the sum of round 0; upload it again"):
            world.download("scales" if own.header.kind == "calibration" else "aggregate", own=own)
        for send in (world.resume, world.send):
            with pytest.raises(ManifestMismatchError):
                send(own)
    world.calibrate(*SITES[:2])
    for own in updates[:1]:
        with pytest.raises(ManifestMismatchError):
            world.send(own)
    world.update(*SITES[:2])
    world.ends_well(*SITES[:2])


def test_who_skipped_a_round_that_is_void_skips_it_still(world: World, signed: Signed) -> None:
    world.server.start()
    world.calibrate(*SITES)
    world.skip("site-1")
    world.restart(under(signed, signed.without("site-3"), world))
    assert world.state == (0, "calibration", 2, (), ("site-1",), ("site-2",))


@pytest.mark.parametrize("death", range(6))
def test_a_server_that_dies_while_it_voids_a_round(
    world: World, signed: Signed, death: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.calibrate(*SITES)
    world.update("site-1", "site-3")
    later = under(signed, signed.without("site-3"), world)
    unlink, left = Path.unlink, death

    def dying(path: Path, missing_ok: bool = False) -> None:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= path.suffix in (".update", ".calibration") or path.name.startswith("scales")
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", dying)
        with pytest.raises(KeyboardInterrupt):
            world.restart(later)
    world.restart()
    assert world.state[:2] == (0, "calibration")
    assert world.files() == []
    world.calibrate(*SITES[:2])
    world.update(*SITES[:2])
    world.ends_well(*SITES[:2])


@pytest.mark.parametrize("stage", ["calibration", "update without any", "update"])
def test_a_manifest_that_only_adds_serves_from_the_next_round(world: World, signed: Signed, stage: str) -> None:
    world.join(*SITES)
    world.calibrate(*SITES[:2])
    if stage != "calibration":
        world.calibrate("site-3")
        if stage == "update":
            world.update("site-1")
    before = world.state
    world.restart(under(signed, signed.reissue()))
    assert world.state == before
    assert world.server.status().project_serial == signed.project.serial
    if stage == "calibration":
        world.calibrate("site-3")
        assert world.server.status().project_serial == signed.project.serial
    world.update(*(SITES[1:] if stage == "update" else SITES))
    assert (world.state[:2], world.server.status().project_serial) == ((1, "calibration"), signed.project.serial + 1)
    world.ends_well(*SITES)


def test_a_manifest_serves_at_once_where_nothing_is_acknowledged(world: World, signed: Signed) -> None:
    world.join(*SITES)
    world.restart(under(signed, signed.reissue(), world))
    assert world.server.status().project_serial == signed.project.serial + 1
    world.calibrate(*SITES)


@pytest.mark.parametrize("stage", ["calibration", "update"])
def test_what_is_under_an_old_key_is_left_out(
    world: World, signed: Signed, stage: str, caplog: pytest.LogCaptureFixture
) -> None:
    world.join(*SITES)
    world.calibrate(*SITES[:2])
    if stage == "update":
        world.calibrate("site-3")
        world.update("site-1")
    keys = secagg.generate_keys(signed.config, 1)
    project = signed.reissue(epoch=1, key=keys.server.fingerprint)
    later = replace(signed, federation=replace(signed.federation, keys=keys), project=project)
    world.sites = {name: later.site(name) for name in SITES}
    world.restart(later)
    assert world.state == (0, "calibration", 1, (), (), SITES)
    assert ("round 0: its scales are of another key or configuration" in caplog.text) == (stage == "update")
    assert not (world.folder / "scales-0.secagg").exists()
    world.calibrate(*SITES)
    world.update(*SITES)
    world.ends_well(*SITES)
