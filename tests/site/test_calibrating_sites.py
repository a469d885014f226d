"""Sites in the folders of their kits whose rounds begin with a calibration, and what may happen to it on the way."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from changing_sites import MODEL, NAMES, Site, World, ignored, made, removed
from provisioned import Federation as Provisioned

import secagg
from secagg.errors import MismatchError, QuorumError, RangeError, ScalesMismatchError
from secagg.site.folder import SCALES_FILE, TRAINED_FILE, UPDATE_FILE
from secagg.site.loop import take_part
from secagg.site.record import SiteRecord
from secagg.site.task import CheckedTask
from secagg.site.trained import Trained

WEIGHTS = {"a": 2, "b": 3, "c": 90, "d": 1}
SITES = ("a", "b", "c")


def provision(folder: Path, precision: str = "auto") -> Provisioned:
    aggregation = {"min_clients": 2, "max_clients": 5, "precision": precision}
    config: dict[str, Any] = {"scheme": "FLASHE"}
    if precision == "fixed":
        aggregation |= {"max_abs": 0.1, "max_weight": 100}
        config |= {"value_bits": 10, "rounding": "nearest", "error_feedback": True}
    he = {"lib": "flashe", "config": config}
    return Provisioned.make(folder, hosts=[], sites=list(NAMES), he=he, aggregation=aggregation)


@pytest.fixture(scope="module")
def provisioned(tmp_path_factory: pytest.TempPathFactory) -> Provisioned:
    return provision(tmp_path_factory.mktemp("auto"))


@pytest.fixture
def world(provisioned: Provisioned, tmp_path: Path) -> Iterator[World]:
    with World(provisioned, tmp_path) as world:
        yield world


class Learns:
    """Changes the model by what is settled beforehand, and counts how often."""

    def __init__(self, name: str, times: float = 1.0) -> None:
        self.name, self.times, self.examples = name, times, WEIGHTS[name]
        self.model, self.rounds = {"w": MODEL["w"].copy()}, list[int]()

    def train(self, round: int) -> None:
        self.rounds.append(round)
        self.model["w"] += made(round, self.name) * np.float32(self.times)


class Running:
    """Processes of sites, as `secagg site` is."""

    def __init__(self, pool: ThreadPoolExecutor, world: World) -> None:
        self._pool, self._world = pool, world
        self.sites: dict[str, Site] = {}
        self.tasks: dict[str, Learns] = {}
        self.futures: dict[str, Future[list[SiteRecord]]] = {}
        self._starting: dict[str, Callable[[], list[SiteRecord]]] = {}

    def start(self, name: str, rounds: int, times: float = 1.0) -> Site:
        site, task, kept = self._world.site(name), Learns(name, times), list[SiteRecord]()
        self.sites[name], self.tasks[name] = site, task

        def run() -> list[SiteRecord]:
            take_part(site.participant, CheckedTask(name, task), rounds, kept.append)
            return kept

        self._starting[name] = run
        return site

    def _begin(self) -> None:
        """Let those run that were started: all have joined, so that no round ends without one of them."""
        self.futures |= {name: self._pool.submit(run) for name, run in self._starting.items()}
        self._starting = {}

    def until(self, condition: Callable[[], bool]) -> None:
        self._begin()
        deadline = time.monotonic() + 120
        while not condition():
            for future in self.futures.values():
                assert not future.done() or future.result() is not None  # raises what it has raised
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def join(self) -> dict[str, list[SiteRecord]]:
        self._begin()
        return {name: future.result(120) for name, future in self.futures.items()}


@contextmanager
def running(world: World) -> Iterator[Running]:
    with ThreadPoolExecutor(4) as pool:
        try:
            yield Running(pool, world)
        except BaseException:
            world.stop()  # or those that wait would wait on
            raise


def weighted(*rounds: dict[str, float]) -> np.ndarray:
    """What rounds make of the global model if nothing is rounded: of each, how much which site's change counted."""
    w = MODEL["w"].astype(np.float64)
    for round, times in enumerate(rounds):
        total = sum(WEIGHTS[name] for name in times)
        w = w + sum(
            WEIGHTS[name] / total * factor * made(round, name).astype(np.float64) for name, factor in times.items()
        )
    return w


def check(sites: list[Site], exact: np.ndarray) -> None:
    """All have one model, which is off by half a step of the latest updates at most."""
    reports = [site.model.site.report for site in sites]
    steps = sum(report.overall.step for report in reports if report)
    assert all(site.model.site.clipped == 0 for site in sites)
    for site in sites:
        np.testing.assert_array_equal(site.w, sites[0].w)
    total = sum(WEIGHTS[site.name] for site in sites)
    assert np.abs(sites[0].w - exact).max() <= steps / 2 / total + 4 * 2.0**-24


EVERY = dict.fromkeys(SITES, 1.0)


def killed_before_the_scales(site: Site, times: float = 1.0) -> None:
    """Let a process train and calibrate, and be killed while it waits for others."""

    def die(*_: object) -> Any:
        raise KeyboardInterrupt

    site.participant._session._link.download = die  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        site.participant.encrypt({"w": site.w + made(0, site.name) * np.float32(times)}, float(WEIGHTS[site.name]))


def encrypt_all(world: World, *names: str) -> dict[str, Site]:
    """Processes that end when they have encrypted."""
    sites = {name: world.site(name) for name in names}
    with ThreadPoolExecutor(len(names)) as pool:
        waiting = [
            pool.submit(site.participant.encrypt, {"w": site.w + made(0, name)}, float(WEIGHTS[name]))
            for name, site in sites.items()
        ]
        for future in waiting:
            future.result(120)
    return sites


def added(world: World) -> tuple[str, ...]:
    return world.federation.status().added


@pytest.mark.parametrize("precision", ["auto", "previous", "fixed"])
def test_processes_that_end_after_each_round(precision: str, tmp_path: Path) -> None:
    """What the next ones need is in their folders, also scales that follow from the round before."""
    with World(provision(tmp_path / "made", precision), tmp_path / "world") as world:
        for round in range(3):
            with running(world) as now:
                for name in SITES:
                    now.start(name, round + 1)
                records = {name: kept[0] for name, kept in now.join().items()}
        measured = [dict.fromkeys(SITES, 0.0 if precision == "previous" else 1.0), EVERY, EVERY]
        check(list(now.sites.values()), weighted(*measured))
        for name, record in records.items():
            assert (record.calibration_nbytes > 0) == (record.calibrate_seconds > 0) == (precision == "auto")
            assert record.bits > (4 if name == "c" else 0.5)  # a light site needs fewer of what the heaviest has
            assert record.clipped == 0
            lines = now.sites[name].told.lines
            assert f"round 2 (3 of 3): {record.bits:.1f} bits a value" in lines
            assert not any("clipped" in line for line in lines)
            for file in (TRAINED_FILE, SCALES_FILE, UPDATE_FILE):
                assert not (world.kits[name] / file).exists()


def test_the_first_round_of_previous_says_that_it_measures_only(tmp_path: Path) -> None:
    with World(provision(tmp_path / "made", "previous"), tmp_path / "world") as world, running(world) as now:
        for name in ("a", "b"):
            now.start(name, 1)
        now.join()
        np.testing.assert_array_equal(now.sites["a"].w, MODEL["w"])
        assert "round 0 (1 of 1): this update measures only, and leaves the global model as it is" in (
            now.sites["a"].told.lines
        )


def test_killed_between_calibration_and_upload(world: World) -> None:
    """What it has trained is kept, for its owner alone, and what it has calibrated counts: nothing is lost."""
    first = world.site("a")
    killed_before_the_scales(first)
    assert added(world) == ("a",)
    trained = world.kits["a"] / TRAINED_FILE
    assert trained.stat().st_mode & 0o777 == 0o600
    with running(world) as now:
        for name in SITES:
            now.start(name, 1)
        now.join()
    assert now.tasks["a"].rounds == []
    assert "round 0 (1 of 1): going on with what was trained before" in now.sites["a"].told.lines
    assert not trained.exists()
    check(list(now.sites.values()), weighted(EVERY))


@pytest.mark.parametrize("times", [0.1, 10.0])
def test_killed_there_and_trained_again(world: World, times: float) -> None:
    """What it had trained cannot be read: what it sends now is within what it had calibrated, or clipped, and due."""
    killed_before_the_scales(world.site("c"))
    path = world.kits["c"] / TRAINED_FILE
    path.write_bytes(path.read_bytes()[:-1])
    with running(world) as now:
        for name in SITES:
            now.start(name, 1, times if name == "c" else 1.0)
        records = now.join()
    assert now.tasks["c"].rounds == [0]
    assert (records["c"][0].clipped > 0) == (times > 1)
    if times > 1:
        assert any(f"{records['c'][0].clipped:,} of 3,000 clipped" in line for line in now.sites["c"].told.lines)
    with running(world) as now:
        for name in SITES:
            now.start(name, 2)
        now.join()
    check(list(now.sites.values()), weighted({**EVERY, "c": times}, EVERY))


def test_a_site_that_missed_the_calibration(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """It takes the scales of the others, far too small for its weight, and owes the rest to the next round."""
    encrypt_all(world, "a", "b")
    assert world.federation.status().stage == "update"
    with running(world) as now, caplog.at_level(logging.WARNING, "secagg.site.session"):
        now.start("c", 1)
        now.until(lambda: added(world) == ("c",))
        for name in ("a", "b"):
            now.start(name, 1)
        records = now.join()
    assert "the scales of round 0 are without those of c" in caplog.text
    assert records["c"][0].clipped > 2000
    with running(world) as now:
        for name in SITES:
            now.start(name, 2)
        now.join()
    check(list(now.sites.values()), weighted(EVERY, EVERY))


def test_a_calibration_without_quorum_is_waited_for_again(provisioned: Provisioned, tmp_path: Path) -> None:
    with World(provisioned, tmp_path, round_timeout=1.0) as world, running(world) as now:
        site = now.start("a", 1)
        now.until(lambda: any("waiting again" in line for line in site.told.lines))
        assert any("1 of at least 2 calibrations after 1 s" in line for line in site.told.lines)
        world.round_timeout = 600.0
        world.restart()
        now.start("b", 1)
        now.join()
        assert now.tasks["a"].rounds == [0]
        check(list(now.sites.values()), weighted({"a": 1.0, "b": 1.0}))


class Lacking:
    """In place of a session's link: answers at once that the others are missing, some times."""

    def __init__(self, session: secagg.site.Session, monkeypatch: pytest.MonkeyPatch, times: float) -> None:
        self.link, self.times, self.pauses = session._link, times, list[float]()
        session._link = self  # type: ignore[assignment]
        monkeypatch.setattr("secagg.site.session.time", self)

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.link, name)

    def download(self, *arguments: Any) -> Any:
        if len(self.pauses) < self.times:
            raise QuorumError("round 0 has 1 of at least 2 calibrations")
        return self.link.download(*arguments)


def test_the_others_have_left_for_good(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that says so at once is asked ten times, with growing pauses, and what was trained is kept."""
    site = world.site("a")
    lacking = Lacking(site.participant._session, monkeypatch, times=float("inf"))
    with pytest.raises(QuorumError, match="1 of at least 2 calibrations; so it was 10 times in a row: .* is kept"):
        site.participant.encrypt({"w": site.w + made(0, "a")}, 2.0)
    assert len(lacking.pauses) == 9
    assert all(0.05 <= pause <= 5 for pause in lacking.pauses)
    assert sum(lacking.pauses[-3:]) >= 7.5
    assert sum("waiting again" in line for line in site.told.lines) == 9
    assert world.site("a").participant.has_trained()


def test_a_session_waits_again_by_itself(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    encrypt_all(world, "a", "b")
    model, session = secagg.site.GlobalModel(secagg.Client.load(world.kits["c"]), MODEL), world.session("c")
    session.join()
    Lacking(session, monkeypatch, times=9)
    with (
        caplog.at_level(logging.WARNING, "secagg.site.session"),
        session.calibrate(model.calibrate(MODEL, 1.0), tmp_path / "scales") as scales,
    ):
        assert sorted(scales.header.sites) == ["a", "b"]
    assert caplog.text.count("waiting again for the calibrations of others: round 0 has 1 of at least 2") == 9


def test_a_site_is_revoked_while_others_wait_for_the_scales(world: World) -> None:
    """The round is void, with its calibration; they calibrate again, and do not train again."""
    killed_before_the_scales(world.site("d"))
    with running(world) as now:
        world.site("c")  # it is waited for
        for name in ("a", "b"):
            now.start(name, 1)
        now.until(lambda: added(world) == ("a", "b", "d"))
        world.restart(removed("d"))
        now.start("c", 1)
        now.join()
    for name in ("a", "b"):
        assert now.tasks[name].rounds == [0]
        told = "round 0 was voided: d has been revoked; encrypted again under manifest 2"
        assert now.sites[name].told.lines.count(told) == 1
    check(list(now.sites.values()), weighted(EVERY))


def test_a_server_that_has_lost_the_scales(world: World) -> None:
    """What was encrypted under them is in no sum: it is calibrated and encrypted again."""
    sites = encrypt_all(world, *SITES)
    sites["a"].participant.upload(ignored)
    world.stop()
    (world.run / "scales-0.secagg").unlink()
    for path in (world.run / "round-0").glob("*.calibration"):  # of which it could have made them again
        path.unlink()
    world.start()
    with running(world) as now:
        for name in SITES:
            now.start(name, 1)
        now.join()
    for name, site in now.sites.items():
        assert now.tasks[name].rounds == []
        assert any("round 0 is under other scales by now; encrypted again" in line for line in site.told.lines)
    assert any("ATTENTION: the server had acknowledged" in line for line in now.sites["a"].told.lines)
    check(list(now.sites.values()), weighted(EVERY))


def test_a_server_cannot_lose_the_scales_forever(world: World) -> None:
    sites = encrypt_all(world, *SITES)
    site, refusal = sites["a"].participant, ScalesMismatchError("lost")
    for _ in range(5):
        assert site.renew(refusal)
    with pytest.raises(ScalesMismatchError, match="lost"):
        site.renew(refusal)


def test_what_cannot_be_sent_is_not_kept(world: World) -> None:
    """Another process trains again: the task may have been mended."""
    site = world.site("a")
    with pytest.raises(RangeError, match="'w'"):
        site.participant.encrypt({"w": site.w + np.float32(np.nan)}, 2.0)
    assert not world.site("a").participant.has_trained()
    assert not (site.folder / TRAINED_FILE).exists()


def test_what_was_trained_for_another_round_or_is_damaged_is_no_use(tmp_path: Path) -> None:
    trained = Trained(3, bytes(32), {"w": np.arange(4.0), "n": np.array(5), "not stored": object()}, 2)
    trained.keep(tmp_path)
    found = Trained.find(tmp_path, 3, bytes(32))
    assert found is not None
    assert (found.weight, found.local.keys()) == (2.0, {"w", "n"})
    np.testing.assert_array_equal(found.local["w"], np.arange(4.0))
    assert "0." not in repr(found).replace("2.0", "")
    assert Trained.find(tmp_path, 4, bytes(32)) is None
    assert Trained.find(tmp_path, 3, b"x" * 32) is None
    blob = (tmp_path / TRAINED_FILE).read_bytes()
    (tmp_path / TRAINED_FILE).write_bytes(blob[:-1] + b"x")
    assert Trained.find(tmp_path, 3, bytes(32)) is None


def test_what_is_of_the_open_round_stays(world: World) -> None:
    """Fewer rounds are asked for than the federation is at; and it says not that it has nothing to give."""
    killed_before_the_scales(world.site("a"))
    again = world.site("a")
    again.participant.clear()
    again.participant.leave()
    assert world.federation.status().skipped == ()
    assert again.participant.has_trained()


# A loop of one's own.


def test_a_session_calibrates(world: World, tmp_path: Path) -> None:
    """Two sites without a participant; one of them finds its own calibration when it is started again."""

    def run(name: str, restarted: bool) -> np.ndarray:
        folder = tmp_path / f"own {name}"
        folder.mkdir()
        kit = world.kits[name]
        model, session = secagg.site.GlobalModel(secagg.Client.load(kit), MODEL), world.session(name)
        session.join()
        local = {"w": model.state["w"] + made(0, name)}
        if restarted:
            session._send("an earlier process", model.calibrate(local, WEIGHTS[name]), None)
        session.catch_up(model, folder / "download")  # its calibration is no update that counts
        with session.calibrate(model.calibrate(local, WEIGHTS[name]), folder / "scales", ignored) as scales:
            update = model.encrypt(local, WEIGHTS[name], scales)
        with session.exchange(update, folder / "aggregate") as aggregate:
            model.apply(aggregate, session.receipt(0))
        with pytest.raises(MismatchError, match="kind 'update' where 'calibration' belongs"):
            session.calibrate(update, folder / "scales")
        with pytest.raises(MismatchError, match="kind 'calibration' where 'update' belongs"):
            session.upload(model.calibrate(model.state, 1.0))
        return model.state["w"]

    with ThreadPoolExecutor(2) as pool:
        world.site("a"), world.site("b")
        futures = [pool.submit(run, name, name == "a") for name in ("a", "b")]
        found = [future.result(120) for future in futures]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_allclose(found[0], weighted({"a": 1.0, "b": 1.0}), atol=0.03 / 31)
