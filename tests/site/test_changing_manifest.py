"""A manifest that changes in the middle of a round, over a real server that starts again: sites go on, or are told."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from changing_sites import MODEL, Site, World, added, ignored, made, provision, removed, run_round
from provisioned import Federation as Provisioned

import secagg
from secagg.errors import (
    IdentityError,
    ManifestMismatchError,
    RoundMismatchError,
    SignatureError,
    StateError,
    StorageError,
    TransportError,
    VerificationError,
)
from secagg.server import run_folder
from secagg.site.folder import CARRY_FILE, MODEL_FILE, RECEIPT_FILE, UPDATE_FILE
from secagg.site.loop import take_part
from secagg.site.record import SiteRecord
from secagg.site.task import CheckedTask
from secagg.trust import load_server_kit, load_site_kit
from secagg.trust.kit_files import PROJECT_FILE
from secagg.wire.carry import StoredCarry
from secagg.wire.update import UpdateWriter


@pytest.fixture(scope="module")
def provisioned(tmp_path_factory: pytest.TempPathFactory) -> Provisioned:
    return provision(tmp_path_factory.mktemp("four"))


@pytest.fixture
def world(provisioned: Provisioned, tmp_path: Path) -> Iterator[World]:
    with World(provisioned, tmp_path) as world:
        yield world


def records(world: World) -> list[dict[str, Any]]:
    path = world.run / "rounds.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def served(world: World) -> secagg.Project:
    return secagg.Project.load(world.run / PROJECT_FILE)


def aggregate_of(world: World, *updates: secagg.Update, project: secagg.Project | None = None) -> secagg.Update:
    """What a server that chooses makes of updates."""
    kit = load_server_kit(world.kits["server"])
    aggregator = secagg.Aggregator(kit.config, kit.key, updates[0].header.round, project=project)
    for update in updates:
        aggregator.add(update)
    return secagg.Update.from_bytes(aggregator.finish().to_bytes())


def open_round(world: World, *givers: str) -> list[Site]:
    """All four sites join, and some of them give; return those that take part, a first."""
    sites = world.sites("a", "b", "c", "d")
    for site in sites:
        if site.name in givers:
            site.give()
    return sites


def relabelled(aggregate: secagg.Update, manifest: bytes | None) -> secagg.Update:
    """The same sum under another manifest; all digests are right."""
    header, stream = replace(aggregate.header, manifest=manifest), BytesIO()
    writer = UpdateWriter(stream, header)
    for frame, (_, payload) in zip(header.frames, aggregate.frames(), strict=True):
        writer.write(frame, memoryview(payload))
    stream.write(aggregate.tail.pack(header.head, header.frame_count))
    return secagg.Update.from_bytes(stream.getvalue())


def update_of(site: Site) -> secagg.Update:
    return secagg.Update.from_bytes((site.folder / UPDATE_FILE).read_bytes())


# A site is revoked.


def test_a_revocation_voids_the_open_round(world: World) -> None:
    a, b, c, d = world.sites("a", "b", "c", "d")
    run_round([a, b, c, d])
    for site in (a, b, c, d):
        site.participant.join()
    a.give()
    d.give()
    before, receipt = update_of(a), (a.folder / RECEIPT_FILE).read_bytes()
    world.restart(removed("d"))
    status = world.federation.status()
    assert (status.round, status.attempt, status.added, status.waiting_for) == (1, 2, (), ("a", "b", "c"))
    assert (status.project_serial, served(world)) == (2, world.project)
    assert [path.name for path in (world.run / "round-1").iterdir()] == []
    record = records(world)[-1]
    assert (record["round"], record["attempt"], record["outcome"]) == (1, 1, "voided")
    assert (record["reason"], [upload["site"] for upload in record["uploads"]]) == ("d has been revoked", ["a", "d"])

    with pytest.raises(IdentityError, match="'d' has been revoked"):
        d.participant.upload(ignored)
    with pytest.raises(ManifestMismatchError, match="serial 2: join again, and encrypt again"):
        a.take()  # it waits; the server has lost its update, and refuses it now
    b.participant.encrypt(b.local, 2.0)  # it had trained under the earlier manifest, and knows nothing yet
    for site in (a, b):
        with pytest.raises(ManifestMismatchError) as caught:
            site.participant.upload(ignored)
        assert site.participant.renew(caught.value)
        assert site.told.lines[-1] == "round 1 was voided: d has been revoked; encrypted again under manifest 2"
    c.participant.join()
    assert run_round([a, b, c]).manifest == world.project.digest
    assert update_of(a).header.manifest == world.project.digest != before.header.manifest
    assert not (a.folder / RECEIPT_FILE).exists()
    assert receipt
    assert records(world)[-1]["outcome"] == "completed"
    assert records(world)[-1]["attempt"] == 2


class Counts:
    """Counts how often it trains, and tells when it has."""

    examples = 2

    def __init__(self, name: str) -> None:
        self.name, self.model, self.rounds = name, {"w": MODEL["w"].copy()}, list[int]()

    def train(self, round: int) -> None:
        self.rounds.append(round)
        self.model["w"] += made(round, self.name)


def test_sites_that_wait_encrypt_again_and_do_not_train_again(world: World) -> None:
    """Two wait for the aggregate while the server is away; the third comes when it is there again."""
    tasks = {name: Counts(name) for name in ("a", "b", "c")}
    sites = {name: world.site(name) for name in tasks}
    world.site("d").give()
    expected = sum(made(0, name) for name in tasks) / 3

    def run(name: str) -> list[SiteRecord]:
        kept: list[SiteRecord] = []
        take_part(sites[name].participant, CheckedTask(name, tasks[name]), 2, kept.append)
        return kept

    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(run, name) for name in ("a", "b")]
        while len(world.federation.status().added) < 3:
            for future in waiting:
                assert not future.done() or future.result() is None
        world.restart(removed("d"))
        last = pool.submit(run, "c")
        kept = [future.result() for future in (*waiting, last)]
    assert [task.rounds for task in tasks.values()] == [[0, 1]] * 3
    assert all(len(rounds) == 2 and rounds[0].nbytes > 0 for rounds in kept)
    for name in tasks:
        lines = [line for line in sites[name].told.lines if "voided" in line]
        assert lines == ["round 0 was voided: d has been revoked; encrypted again under manifest 2"]
        np.testing.assert_array_equal(sites[name].w, sites["a"].w)
    assert expected.shape == sites["a"].w.shape
    outcomes = [(record["round"], record["outcome"]) for record in records(world)]
    assert outcomes == [(0, "voided"), (0, "completed"), (1, "completed")]


def test_a_process_that_has_not_trained_itself_trains_again(world: World) -> None:
    open_round(world, "a", "d")
    task = Counts("a")
    again = world.site("a")  # a new process, which goes on with the update in the folder
    with ThreadPoolExecutor(2) as pool:
        kept: list[SiteRecord] = []
        future = pool.submit(take_part, again.participant, CheckedTask("a", task), 1, kept.append)
        while not any("going on with the update" in line for line in again.told.lines):
            assert not future.done()
        world.restart(removed("d"))
        other, idle = world.site("b"), world.site("c")
        idle.participant.skip()
        other.give()
        other.take()
        future.result()
    assert task.rounds == [0]
    assert "round 0 was voided: d has been revoked; to be trained again under manifest 2" in again.told.lines
    np.testing.assert_array_equal(again.w, other.w)


class Idle(Counts):
    """Has no examples."""

    examples = 0


@pytest.mark.parametrize("change", [removed("d"), added("e")], ids=["removed", "added"])
def test_a_site_that_has_skipped_takes_the_sum_of_a_later_manifest(world: World, change: Any) -> None:
    """Nobody refuses an update of it: that there is a later manifest, the sum tells."""
    a, task = world.site("a"), Idle("a")
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(take_part, a.participant, CheckedTask("a", task), 1, list[SiteRecord]().append)
        while world.federation.status().skipped != ("a",):
            assert not future.done()
        world.restart(change)
        b, c = world.sites("b", "c")
        run_round([b, c])
        future.result()
    assert (task.rounds, a.model.round, a.participant._kit.project) == ([], 1, world.project)
    np.testing.assert_array_equal(a.w, b.w)


def test_a_process_that_starts_after_the_revocation_trains_again(world: World) -> None:
    first, *_ = open_round(world, "a", "d")
    assert first.participant.has_update()
    world.restart(removed("d"))
    site = world.site("a")
    assert (site.folder / UPDATE_FILE).exists()
    assert not site.participant.has_update()
    run_round([site, *world.sites("b", "c")])


def test_without_a_later_manifest_nobody_is_driven_on(world: World) -> None:
    """A server that says again and again that the manifest is another one."""
    site = world.site("a")
    site.participant.encrypt(site.local, 2.0)
    before = update_of(site).header
    refusal = ManifestMismatchError("join again, and encrypt again")
    with pytest.raises(ManifestMismatchError, match="join again"):
        site.participant.renew(refusal)
    assert update_of(site).header == before
    task, tried = CheckedTask("a", Counts("a")), []

    def upload(*_: object) -> None:
        tried.append(1)
        raise refusal

    site.participant._session.upload = upload  # type: ignore[method-assign]
    with pytest.raises(ManifestMismatchError, match="join again"):
        take_part(site.participant, task, 1, list[SiteRecord]().append)
    assert tried == [1]


def test_a_round_that_has_ended_meanwhile_is_missed(provisioned: Provisioned, tmp_path: Path) -> None:
    with World(provisioned, tmp_path, round_timeout=3.0) as world:
        site, *_ = open_round(world, "a", "d")
        world.restart(removed("d"))
        b, c = world.sites("b", "c")
        assert run_round([b, c]).sites == ("b", "c")
        refusal = ManifestMismatchError("the update from a was made under another project manifest")  # just in time
        with pytest.raises(RoundMismatchError, match="round 0 ended without this site"):
            site.participant.renew(refusal)
        np.testing.assert_array_equal(site.w, b.w)
        assert site.model.round == 1


# Receipts.


def test_a_receipt_of_a_voided_round_counts_for_nothing(provisioned: Provisioned, tmp_path: Path) -> None:
    with World(provisioned, tmp_path, round_timeout=3.0) as world:
        site, *_ = open_round(world, "a", "d")
        assert (site.folder / RECEIPT_FILE).exists()
        world.restart(removed("d"))
        run_round(world.sites("b", "c"))
        again = world.site("a")
        assert again.model.round == 1
        assert any("round 0 was voided, and done again" in line for line in again.told.lines)
        assert not (site.folder / RECEIPT_FILE).exists()


@pytest.mark.parametrize("change", ["added", "removed later"])
def test_a_receipt_holds_where_nobody_was_revoked(world: World, change: str) -> None:
    """The server leaves an acknowledged update out, and shows a sum under a manifest that revokes nobody more."""
    a, b, c = world.sites("a", "b", "c")
    a.give()
    world.change(added("e"))
    newer = world.project
    clients = []
    for site in (b, c):
        kit = load_site_kit(site.folder).store_manifest(newer.signed)
        clients.append(secagg.Client.load(kit))
    updates = [client.encrypt({"w": made(0, client.name)}, round=0, base=a.model.base) for client in clients]
    left_out = aggregate_of(world, *updates, project=newer)
    if change == "removed later":
        world.change(removed("d"))
    world.restart()
    if change == "removed later":  # a site was revoked after that sum: that excuses nothing
        a.participant._kit = load_site_kit(a.folder).store_manifest(world.project.signed)
    else:
        a.participant._kit = load_site_kit(a.folder).store_manifest(newer.signed)
    a.model.site = secagg.Client.load(a.participant._kit)
    with pytest.raises(VerificationError, match="has left it out"):
        a.participant.receive(left_out)
    assert (a.folder / RECEIPT_FILE).exists()
    assert (a.folder / UPDATE_FILE).exists()
    assert a.model.round == 0


# A site is added.


def test_an_added_site_takes_part_from_the_next_round_on(world: World, caplog: pytest.LogCaptureFixture) -> None:
    a, b, c = world.sites("a", "b", "c")
    before = world.project
    a.give()
    with caplog.at_level("INFO"):
        world.restart(added("e"))
    assert "manifest 2 serves from round 1 on; round 0 goes on under" in caplog.text
    world.restart()  # as often as one likes
    status = world.federation.status()
    assert (status.attempt, status.added, status.project_serial) == (1, ("a",), 1)
    assert served(world) == before
    late = world.session("e", timeout=1.0)
    with pytest.raises(TransportError, match="site 'e' takes part from round 1 on, and round 0 goes on under manifest"):
        late.join()
    b.participant.join()
    assert b.participant._kit.project == before
    with caplog.at_level("INFO"):
        for site in (b, c):
            site.give()
        assert a.take().manifest == before.digest
    assert "manifest 2 serves from now on" in caplog.text
    assert served(world) == world.project != before
    assert world.federation.status().project_serial == 2
    new = world.site("e")  # it begins from the stored model, or catches up: the sum is under an earlier manifest
    assert new.model.round == 1
    b.participant.join()  # it has not taken the aggregate yet, which is under the earlier manifest
    assert (b.participant._kit.project, b.model.round) == (world.project, 1)
    c.take()
    for site in (a, c):
        site.participant.join()
    header = run_round([a, b, c, new])
    assert (header.sites, header.manifest) == (("a", "b", "c", "e"), world.project.digest)
    assert [record["outcome"] for record in records(world)] == ["completed", "completed"]


def test_an_added_site_that_waits_comes_in(world: World) -> None:
    """It tries for as long as it tries to reach a server."""
    a, b = world.sites("a", "b")
    a.give()
    world.restart(added("e"))
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(lambda: world.site("e"))
        b.give()
        a.take()
        assert future.result().model.round == 1
    assert "e" in world.federation.status().waiting_for


def test_a_manifest_serves_at_once_if_nothing_was_added(world: World) -> None:
    a, b = world.sites("a", "b")
    a.participant.encrypt(a.local, 2.0)
    world.restart(added("e"))
    assert (served(world), world.federation.status().project_serial) == (world.project, 2)
    assert records(world) == []
    with pytest.raises(ManifestMismatchError) as caught:
        a.give()
    assert a.participant.renew(caught.value)
    assert a.told.lines[-1] == "round 0 is under another manifest by now; encrypted again under manifest 2"
    b.participant.join()
    run_round([a, b, world.site("e")])


def test_a_revocation_while_a_manifest_waits(world: World) -> None:
    a, b = world.sites("a", "b")
    a.give()
    world.restart(added("e"))
    world.restart(removed("d"))
    assert (served(world).serial, world.federation.status().added) == (3, ())
    assert records(world)[-1]["reason"] == "d has been revoked"
    for site in (a, b):
        site.participant.join()
    run_round([a, b, world.site("e")])


# Sums of one manifest.


def test_updates_of_two_manifests_are_never_added(world: World) -> None:
    a, b = world.sites("a", "b")
    a.give()
    world.change(added("e"))
    kit = load_site_kit(b.folder).store_manifest(world.project.signed)  # it knows the newer one by some other way
    newer = secagg.Client.load(kit).encrypt({"w": made(0, "b")}, round=0, base=b.model.base)
    with pytest.raises(ManifestMismatchError, match="another project manifest than those of round 0"):
        b.participant._session.upload(newer)
    world.restart()
    with pytest.raises(ManifestMismatchError, match="another project manifest than those of round 0"):
        b.participant._session.upload(newer)
    with pytest.raises(VerificationError, match="serial 1, an earlier one had 2"):
        b.participant.join()
    assert world.federation.status().added == ("a",)


def test_a_file_of_another_manifest_is_put_aside(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """One that somebody has put back, say: the manifest that serves does not go back with it."""
    a, b = world.sites("a", "b")
    a.give()
    file = world.run / "round-0" / "a.update"
    blob = file.read_bytes()
    world.stop()
    file.unlink()
    world.restart(added("e"))
    b.participant.join()
    b.give()
    world.stop()
    file.write_bytes(blob)
    world.start()
    assert "update_left_out" in {getattr(record, "event", "") for record in caplog.records}
    assert (world.federation.status().added, world.federation.status().project_serial) == (("b",), 2)


def test_another_manifest_in_the_head_of_a_sum(world: World) -> None:
    """Every signature is over a head that names the manifest."""
    a, b = world.sites("a", "b")
    before = world.project
    for site in (a, b):
        site.participant.encrypt(site.local, 2.0)
    sum_before = aggregate_of(world, update_of(a), update_of(b), project=before)
    world.change(added("e"))
    kit = load_site_kit(a.folder).store_manifest(world.project.signed)
    client = secagg.Client.load(kit)
    for reader in (a.model.site, client):
        assert reader.decrypt(sum_before)["w"].shape == (3000,)
    forged = relabelled(sum_before, world.project.digest)
    with pytest.raises(SignatureError):
        client.decrypt(forged)
    with pytest.raises(ManifestMismatchError, match="join again, to take the newest"):
        a.model.site.decrypt(forged)
    with pytest.raises(ManifestMismatchError, match="no manifest"):
        client.decrypt(relabelled(sum_before, None))


def test_a_revoked_site_in_an_earlier_sum(world: World) -> None:
    """A server that keeps it in shows the sum to a site that knows the revocation; one without it is taken."""
    a, b, d = world.sites("a", "b", "d")
    before = world.project
    for site in (a, b, d):
        site.participant.encrypt(site.local, 2.0)
    with_d = aggregate_of(world, update_of(a), update_of(b), update_of(d), project=before)
    without = aggregate_of(world, update_of(a), update_of(b), project=before)
    world.restart(removed("d"))
    late = world.site("c")
    with pytest.raises(IdentityError, match="'d' has been revoked"):
        late.participant.receive(with_d)
    assert (late.model.round, float(late.w.max())) == (0, 0.0)
    late.participant.receive(without)
    assert late.model.round == 1


def test_an_earlier_epoch_and_its_last_manifests(world: World) -> None:
    """The old kit has not seen the manifest of the sum, which is earlier than the newest one."""
    a, b, c, d = world.sites("a", "b", "c", "d")
    world.restart(added("e"))
    for site in (a, b, d):
        site.participant.join()  # c does not
    c.participant._session.skip(0)
    run_round([a, b, d])
    assert load_site_kit(c.folder).project.serial == 1
    world.stop()
    world.change(removed("b"))
    world.change(lambda made, changed, kits: made.rotate(None, changed, kits))
    world.start()
    with pytest.raises(StateError, match="the aggregate of round 0 cannot be used: b has been revoked since"):
        world.site("c")  # nor the model, which b has stored


@pytest.mark.parametrize("revoked", [(), ("d",)])
def test_an_earlier_epoch_without_a_revoked_site(world: World, revoked: tuple[str, ...]) -> None:
    a, b, c = world.sites("a", "b", "c")
    world.restart(added("e"))
    for site in (a, b):
        site.participant.join()
    for site in (a, b):
        site.give()
    c.participant._session.skip(0)
    sum_of = a.take()
    b.take()
    assert sum_of.manifest == world.project.digest
    world.stop()
    if revoked:
        world.change(removed(*revoked))
    world.change(lambda made, changed, kits: made.rotate(None, changed, kits))
    world.start()
    late = world.site("c")
    assert late.model.round == 1
    np.testing.assert_array_equal(late.w, a.w)


# Serials.


def test_the_manifest_in_a_kit_never_goes_back(world: World) -> None:
    """Nor for a process that was started before another one has seen the later one."""
    first, later = load_site_kit(world.kits["a"]), load_site_kit(world.kits["a"])
    old, site = world.project, world.site("a")
    world.stop()
    world.change(removed("d"))
    later.store_manifest(world.project.signed)
    with pytest.raises(VerificationError, match="serial 1, an earlier one had 2"):
        first.store_manifest(old.signed)
    assert load_site_kit(world.kits["a"]).project == world.project
    shutil.rmtree(world.run)
    (world.kits["server"] / PROJECT_FILE).write_bytes(old.signed)  # the server plays back what has been
    world.start()
    with pytest.raises(VerificationError, match="serial 1, an earlier one had 2"):
        site.participant.join()
    with pytest.raises(VerificationError, match="serial 1, an earlier one had 2"):
        world.site("a")


def test_two_processes_keep_the_later_manifest(world: World) -> None:
    serials = [world.project]
    for name in ("d", "c"):
        world.change(removed(name))
        serials.append(world.project)
    for _ in range(20):
        kit = world.kits["a"]
        (kit / PROJECT_FILE).write_bytes(serials[0].signed)
        kits, barrier = [load_site_kit(kit), load_site_kit(kit)], threading.Barrier(2)

        def store(number: int, kits: Any = kits, barrier: Any = barrier) -> None:
            barrier.wait()
            kits[number].store_manifest(serials[number + 1].signed)

        with ThreadPoolExecutor(2) as pool:
            futures = [pool.submit(store, number) for number in (0, 1)]
            futures[1].result()
            if futures[0].exception() is not None:
                assert isinstance(futures[0].exception(), VerificationError)
        assert load_site_kit(kit).project == serials[2]


# Stored models.


def test_a_stored_model_of_a_revoked_site(world: World, caplog: pytest.LogCaptureFixture) -> None:
    sites = world.sites("a", "b", "c", "d")
    run_round(sites)
    model = secagg.Update.open(world.run / "model-1.secagg")
    with model:
        signer = model.header.site
        blob = secagg.Update.from_bytes(model.to_bytes())
    world.restart(removed(signer))
    assert world.federation.status().models == ()
    assert "model_left_out" in {getattr(record, "event", "") for record in caplog.records}
    other = next(site for site in sites if site.name != signer)
    other.participant.join()
    with pytest.raises(IdentityError, match="has been revoked"):
        other.model.site.decrypt_model(blob)
    assert other.participant._session.save_model(other.folder / MODEL_FILE)  # another one may store it now
    assert world.federation.status().models == (1,)


def test_a_stored_model_of_another_site_stays(world: World) -> None:
    sites = world.sites("a", "b", "c", "d")
    run_round(sites)
    with secagg.Update.open(world.run / "model-1.secagg") as model:
        signer = model.header.site
    world.restart(removed(next(site.name for site in sites if site.name != signer)))
    world.restart(added("e"))
    assert world.federation.status().models == (1,)
    new = world.site("e")
    assert new.model.round == 1
    np.testing.assert_array_equal(new.w, sites[0].w)


# Error feedback.


@pytest.fixture(scope="module")
def feeding(tmp_path_factory: pytest.TempPathFactory) -> Provisioned:
    return provision(tmp_path_factory.mktemp("feedback"), error_feedback=True)


def carried(folder: Path) -> Any:
    return StoredCarry.from_bytes((folder / CARRY_FILE).read_bytes()).carry


def test_a_voided_update_is_carried_once(feeding: Provisioned, tmp_path: Path) -> None:
    """As if it had never been: the next round begins where it would have begun."""
    left = {}
    for void in (False, True):
        with World(feeding, tmp_path / str(void)) as world:
            sites = world.sites("a", "b", "c")
            run_round(sites)
            for site in sites:
                site.participant.join()
            if void:
                world.site("d").give()  # it comes late
                for site in sites[:2]:
                    site.give()
                world.restart(removed("d"))
                for site in sites[:2]:
                    with pytest.raises(ManifestMismatchError) as caught:
                        site.take()
                    assert site.participant.renew(caught.value)
                sites[2].participant.join()
            run_round(sites)
            left[void] = [carried(site.folder) for site in sites], sites[0].w
    for clean, again in zip(left[False][0], left[True][0], strict=True):
        assert (clean.round, again.round) == (1, 1)
        for part in ("before", "after"):
            for one, other in zip(getattr(clean, part), getattr(again, part), strict=True):
                np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(left[False][1], left[True][1])


@pytest.mark.parametrize("restarted", [False, True])
def test_a_voided_update_of_a_round_that_was_missed(feeding: Provisioned, tmp_path: Path, restarted: bool) -> None:
    """What it was to pay back is due again, also for the next process."""
    with World(feeding, tmp_path, round_timeout=3.0) as world:
        a, b, c = sites = world.sites("a", "b", "c")
        run_round(sites)
        for site in sites:
            site.participant.join()
        due = carried(a.folder).after
        world.site("d").give()
        a.give()
        assert carried(a.folder).round == 1
        world.restart(removed("d"))
        for site in (b, c):
            site.participant.join()
        run_round([b, c])
        again = world.site("a") if restarted else a
        again.participant.join()
        assert again.model.round == 2
        for one, other in zip(carried(a.folder).after, due, strict=True):
            np.testing.assert_array_equal(one, other)
        kept = StoredCarry.from_bytes(again.model.site.carry()).carry
        np.testing.assert_array_equal(kept.after[0], due[0])


def test_a_new_manifest_leaves_the_carry(feeding: Provisioned, tmp_path: Path) -> None:
    """The client is made anew for it, in the same process."""
    with World(feeding, tmp_path) as world:
        a, *_ = sites = world.sites("a", "b", "c")
        run_round(sites)
        carry, client = a.model.site.carry(), a.model.site
        world.restart(added("e"))
        a.participant.join()
        assert a.model.site is not client
        assert a.model.site.carry() == carry != b""


# The server dies.


@pytest.fixture
def snapshots(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Copies a run folder before each call that changes it: what a server that dies there leaves behind."""
    import os

    def install(run: Path, into: Path) -> list[Path]:
        found: list[Path] = []
        lock = threading.RLock()

        def wrap(name: str, call: Any) -> Any:
            def wrapper(*arguments: Any, **options: Any) -> Any:
                target = arguments[0]
                path = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else os.fspath(target)
                makes = name != "open" or arguments[1] & os.O_CREAT
                with lock:
                    if makes and str(path).startswith(f"{run}/"):
                        taken = into / f"{len(found)}-{name}"
                        found.append(taken)
                        copies.append(taken)
                        with monkeypatch.context() as patch:
                            for original, function in originals.items():
                                patch.setattr(os, original, function)
                            shutil.copytree(run, taken)
                    return call(*arguments, **options)

            return wrapper

        copies: list[Path] = []
        originals = {
            name: getattr(os, name) for name in ("open", "mkdir", "rename", "replace", "rmdir", "unlink", "fsync")
        }
        for name, call in originals.items():
            monkeypatch.setattr(os, name, wrap(name, call))
        return found

    return install


def check_voided(world: World, folder: Path) -> None:
    """A server that starts on what one has left: nothing of the void round comes back, and the others go on."""
    federation = world.open(folder)
    try:
        status = federation.status()
        assert (status.round, status.added, status.project_serial) == (0, (), 2)
        assert status.attempt in (1, 2, 3)
        assert list((folder / "round-0").iterdir()) == []
    finally:
        federation.close()
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    assert {line["outcome"] for line in lines} == {"voided"}
    assert secagg.Project.load(folder / PROJECT_FILE) == world.project


def test_a_server_that_dies_while_it_voids_a_round(
    world: World, tmp_path: Path, snapshots: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_round(world, "a", "d")
    world.stop()
    world.change(removed("d"))
    with monkeypatch.context():
        found = snapshots(world.run, tmp_path / "left")
        world.open(world.run).close()
        monkeypatch.undo()
    assert len(found) > 8
    for folder in [*found, world.run]:
        check_voided(world, folder)


def test_a_server_that_dies_while_a_manifest_takes_over(
    world: World, tmp_path: Path, snapshots: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time it goes on under the earlier manifest, or under the later one in the next round; no update is lost."""
    a, b = world.sites("a", "b")
    a.give()
    b.participant.encrypt(b.local, 2.0)
    before = world.project
    world.restart(added("e"))
    found = snapshots(world.run, tmp_path / "left")
    b.participant.upload(ignored)
    world.stop()
    monkeypatch.undo()
    assert len(found) > 10
    seen = set()
    for folder in [*found, world.run]:
        federation = world.open(folder)
        status = federation.status()
        federation.close()
        seen.add((status.round, status.project_serial, status.added))
        assert secagg.Project.load(folder / PROJECT_FILE).serial == status.project_serial
        if status.round == 1:
            with secagg.Update.open(folder / "aggregate-0.secagg") as aggregate:
                assert (aggregate.header.sites, aggregate.header.manifest) == (("a", "b"), before.digest)
    assert seen <= {(0, 1, ("a",)), (0, 1, ("a", "b")), (1, 2, ())}
    assert len(seen) >= 2


def test_a_manifest_that_cannot_be_stored_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk keeps nobody from what is there; but nothing is acknowledged under a manifest that could be lost.

    Else the next server, which has a later one, would not know the one of those updates, and put them aside.
    """
    run_round(world.sites("a", "b", "c"))
    world.stop()
    world.change(removed("d"))

    def fail(*_: object) -> None:
        raise StorageError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(run_folder.RunFolder, "save_project", fail)
        world.start()
        assert "project_not_stored" in {getattr(record, "event", "") for record in caplog.records}
        a, b, c = world.sites("a", "b", "c")
        assert a.participant._kit.project == world.project
        with a.participant._session.download(0, a.folder / "there"):
            pass
        with pytest.raises(StorageError, match="the disk is full"):
            a.give()
        assert (world.federation.status().added, served(world).serial) == ((), 1)
    a.give()
    assert (world.federation.status().added, served(world)) == (("a",), world.project)
    world.restart(added("e"))
    assert (world.federation.status().added, world.federation.status().project_serial) == (("a",), 2)
    for site in (b, c):
        site.give()
    assert a.take().sites == ("a", "b", "c")


def test_a_manifest_that_cannot_be_stored_voids_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    open_round(world, "a", "d")
    world.stop()
    world.change(removed("d"))

    def fail(*_: object) -> None:
        raise StorageError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(run_folder.RunFolder, "save_project", fail)
        with pytest.raises(StorageError, match="the disk is full"):
            world.open(world.run)
    assert sorted(path.name for path in (world.run / "round-0").iterdir()) == ["a.update", "d.update"]
    world.start()
    assert world.federation.status().added == ()
