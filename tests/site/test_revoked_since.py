"""A site that has not taken an aggregate when one of its contributors is revoked: it goes on from a stored model."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from changing_sites import Site, World, added, ignored, made, provision, removed, run_round
from provisioned import Federation as Provisioned
from signed import Parts

import secagg
from secagg.errors import (
    DigestError,
    IdentityError,
    ManifestMismatchError,
    QuorumError,
    SecAggError,
    SignatureError,
    StateError,
    VerificationError,
)
from secagg.site import GlobalModel
from secagg.site.folder import CARRY_FILE, DOWNLOAD_FILE, MODEL_FILE, RECEIPT_FILE, UPDATE_FILE
from secagg.site.promise import check_kept
from secagg.trust import load_server_kit, load_site_kit
from secagg.wire.carry import StoredCarry

NOT_USED = "the aggregate of round {} cannot be used: d has been revoked since"
KEPT = "the aggregate of round {} lists this site's update, as the server has promised"


@pytest.fixture(scope="module")
def provisioned(tmp_path_factory: pytest.TempPathFactory) -> Provisioned:
    return provision(tmp_path_factory.mktemp("four"))


@pytest.fixture(scope="module")
def feeding(tmp_path_factory: pytest.TempPathFactory) -> Provisioned:
    return provision(tmp_path_factory.mktemp("feedback"), error_feedback=True)


@pytest.fixture
def world(provisioned: Provisioned, tmp_path: Path) -> Iterator[World]:
    with World(provisioned, tmp_path) as world:
        yield world


def all_but_a_take(world: World, *, gives: bool = True) -> list[Site]:
    """All four give to the open round, or all but a, and all but a take its aggregate; return them, a first."""
    sites = world.sites("a", "b", "c", "d")
    if not gives:
        sites[0].participant.skip()
    for site in sites[0 if gives else 1 :]:
        site.give()
    for site in sites[1:]:
        site.take()
    return sites


def told(site: Site, *parts: str) -> bool:
    return all(any(part in line for line in site.told.lines) for part in parts)


def update_of(site: Site) -> secagg.Update:
    return secagg.Update.from_bytes((site.folder / UPDATE_FILE).read_bytes())


def sum_of(world: World, *updates: secagg.Update, project: secagg.Project) -> secagg.Update:
    kit = load_server_kit(world.kits["server"])
    aggregator = secagg.Aggregator(kit.config, kit.key, updates[0].header.round, project=project)
    for update in updates:
        aggregator.add(update)
    return secagg.Update.from_bytes(aggregator.finish().to_bytes())


# With a receipt.


@pytest.mark.parametrize("round", [0, 1])
def test_a_promise_is_kept_by_a_sum_that_cannot_be_used(world: World, round: int) -> None:
    for _ in range(round):
        run_round(world.sites("a", "b", "c", "d"))
    a, b, c, _ = all_but_a_take(world)
    assert (a.folder / RECEIPT_FILE).exists()
    world.restart(removed("d"))
    again = world.site("a")
    assert again.model.round == round + 1
    np.testing.assert_array_equal(again.w, b.w)
    assert again.w.any()
    assert told(again, NOT_USED.format(round), KEPT.format(round), f"the global model of round {round + 1} that")
    assert not (a.folder / RECEIPT_FILE).exists()
    assert again.model.site._failures._here == 0  # nothing was decrypted
    for site in (b, c):
        site.participant.join()
    assert run_round([again, b, c]).sites == ("a", "b", "c")


def test_a_promise_that_such_a_sum_breaks(world: World) -> None:
    """The server shows one without the update: no later model is taken, and the evidence stays."""
    before, (a, *others) = world.project, all_but_a_take(world)
    world.stop()
    left_out = sum_of(world, *map(update_of, others), project=before)
    left_out.save(world.run / "aggregate-0.secagg")
    update = update_of(a)
    world.restart(removed("d"))
    for _ in range(2):
        again = world.site("a", join=False)
        with pytest.raises(VerificationError, match="has left it out of the aggregate of round 0"):
            again.participant.join()
        assert again.model.round == 0
        assert (a.folder / RECEIPT_FILE).exists()
        assert update_of(a) == update


def test_a_model_that_does_not_follow_the_sum_that_is_shown(world: World) -> None:
    """The server keeps its word to one site, and lets the others go on from another sum."""
    before, (a, b, c, d) = world.project, all_but_a_take(world)
    world.stop()
    other = sum_of(world, *map(update_of, (a, b, d)), project=before)
    other.save(world.run / "aggregate-0.secagg")
    world.restart(removed("d"))
    again = world.site("a", join=False)
    with pytest.raises(StateError, match="it does not follow the aggregate of round 0 that the server shows"):
        again.participant.join()
    assert (again.model.round, float(again.w.max())) == (0, 0.0)
    assert not np.array_equal(b.w, again.w)
    assert c.model.round == 1


def forged(aggregate: secagg.Update) -> secagg.Update:
    """A contribution that its site has not signed."""
    parts = Parts.of(aggregate)
    first, second, *others = parts.proofs
    parts.proofs = (first, type(second)(second.body, first.signature), *others)
    return parts.build()


def flipped(aggregate: secagg.Update) -> secagg.Update:
    blob = bytearray(aggregate.to_bytes())
    blob[len(blob) // 2] ^= 1
    return secagg.Update.from_bytes(bytes(blob))


def without_manifest(aggregate: secagg.Update) -> secagg.Update:
    return Parts.of(aggregate).but(manifest=None).build()


def alone(aggregate: secagg.Update) -> secagg.Update:
    parts = Parts.of(aggregate).but(contributions=aggregate.header.contributions[:1])
    parts.proofs = parts.proofs[:1]
    return parts.build()


@pytest.mark.parametrize(
    ("change", "error"),
    [(forged, SignatureError), (flipped, DigestError), (without_manifest, ManifestMismatchError), (alone, QuorumError)],
)
def test_what_is_checked_of_it(world: World, change: Any, error: type[SecAggError]) -> None:
    a, *_ = all_but_a_take(world)
    world.restart(removed("d"))
    kit = load_site_kit(a.folder).store_manifest(world.project.signed)
    aggregate = secagg.Update.from_bytes((world.run / "aggregate-0.secagg").read_bytes())
    receipt = secagg.Receipt.from_bytes((a.folder / RECEIPT_FILE).read_bytes())
    check_kept(kit, aggregate, receipt)
    with pytest.raises(error):
        check_kept(kit, change(aggregate), receipt)
    with pytest.raises(
        IdentityError, match="'d' has been revoked since it gave to round 0, .* a site has stored since"
    ):
        secagg.Client.load(kit).decrypt(aggregate, receipt=receipt)


def test_without_a_model_it_waits_for_one(provisioned: Provisioned, tmp_path: Path) -> None:
    """The model of the round was stored by the site that was removed."""
    with World(provisioned, tmp_path, round_timeout=3.0) as world:
        sites = {site.name: site for site in all_but_a_take(world)}
        with secagg.Update.open(world.run / "model-1.secagg") as model:
            signer = model.header.site
        assert signer == "b"
        world.restart(removed("b"))
        assert world.federation.status().models == ()
        again = world.site("a", join=False)
        with pytest.raises(StateError, match="no aggregate of round 0 that this site can use: wait until a") as caught:
            again.participant.join()
        assert "and start again; the aggregate of round 0 cannot be used: b has been revoked since" in str(caught.value)
        assert told(again, KEPT.format(0))
        others = [sites["c"], sites["d"]]
        for site in others:
            site.participant.join()
        run_round(others)
        again = world.site("a")
        assert again.model.round == 2
        np.testing.assert_array_equal(again.w, others[0].w)


def test_in_the_next_epoch(world: World) -> None:
    """Other signing keys, and another receipt's: those of the round count."""
    a, b, *_ = all_but_a_take(world)
    world.stop()
    world.change(removed("d"))
    world.change(lambda provisioner, changed, kits: provisioner.rotate(None, changed, kits))
    world.start()
    again = world.site("a")
    assert again.model.round == 1
    assert told(again, NOT_USED.format(0), KEPT.format(0))
    assert not (a.folder / RECEIPT_FILE).exists()
    np.testing.assert_array_equal(again.w, b.w)


def test_a_site_that_has_lost_its_own_model(world: World) -> None:
    """The server has no model up to the promised round any more: the promise can be held without one."""
    for _ in range(2):
        run_round(world.sites("a", "b", "c", "d"))
    a, b, c, d = all_but_a_take(world)
    for site in (b, c, d):
        site.participant.join()
    a.participant._session.skip(3)
    run_round([b, c, d])
    (a.folder / MODEL_FILE).unlink()
    assert (a.folder / RECEIPT_FILE).exists()
    assert world.federation.status().models == (3, 4)
    again = world.site("a")
    assert again.model.round == 4
    assert told(again, KEPT.format(2))
    np.testing.assert_array_equal(again.w, b.w)


# Without one.


def test_a_site_that_gave_nothing(world: World) -> None:
    for _ in range(2):
        run_round(world.sites("a", "b", "c", "d"))
    _, b, *_ = all_but_a_take(world, gives=False)
    world.restart(removed("d"))
    again = world.site("a")
    assert again.model.round == 3
    assert told(again, NOT_USED.format(2))
    np.testing.assert_array_equal(again.w, b.w)


def session_catches_up(world: World) -> tuple[GlobalModel, Path]:
    kit = load_site_kit(world.kits["a"])
    with world.session("a") as session:
        kit = kit.store_manifest(session.join().manifest)
        model = GlobalModel(secagg.Client.load(kit), {"w": np.zeros(3000, np.float32)})
        session.catch_up(model, kit.folder / DOWNLOAD_FILE)
        return model, kit.folder


@pytest.mark.parametrize("how", ["participant", "session"])
@pytest.mark.parametrize("stored", [True, False])
def test_by_the_sessions_own_means(world: World, how: str, stored: bool) -> None:
    _, b, *_ = all_but_a_take(world, gives=False)
    world.stop()
    if not stored:
        (world.run / "model-1.secagg").unlink()
    world.restart(removed("d"))
    if stored:
        model = session_catches_up(world)[0] if how == "session" else world.site("a").model
        np.testing.assert_array_equal(model.state["w"], b.w)
        assert model.round == 1
        return
    with pytest.raises(
        StateError, match="no aggregate of round 0 that this site can use: wait until a site has stored"
    ):
        session_catches_up(world) if how == "session" else world.site("a")


# Error feedback.


def carried(folder: Path) -> Any:
    return StoredCarry.from_bytes((folder / CARRY_FILE).read_bytes()).carry


@pytest.mark.parametrize("sent", [True, False])
def test_what_the_sum_lists_counts_as_sent(feeding: Provisioned, tmp_path: Path, sent: bool) -> None:
    """What was encrypted, and came too late, is due again."""
    with World(feeding, tmp_path) as world:
        run_round(world.sites("a", "b", "c", "d"))
        a, b, c, d = world.sites("a", "b", "c", "d")
        due = carried(a.folder).after
        a.participant.encrypt(a.local, 2.0)
        if sent:
            a.participant.upload(ignored)
        else:
            a.participant.skip()
        for site in (b, c, d):
            site.give()
        for site in (b, c, d):
            site.take()
        left = carried(a.folder).after if sent else due
        world.restart(removed("b"))  # which has not stored the model
        again = world.site("a")
        assert again.model.round == 2
        for carry in (carried(a.folder), StoredCarry.from_bytes(again.model.site.carry()).carry):
            for one, other in zip(carry.after, left, strict=True):
                np.testing.assert_array_equal(one, other)
        assert not told(again, "warning")


# A manifest that changes while a site is at work.


def test_a_later_manifest_while_it_catches_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server comes back with another kit when the site has joined, and a round ends under it."""
    a, b, c = (world.site(name) for name in ("a", "b", "c"))
    ask, restarted = a.participant._session.status, list[int]()

    def status() -> Any:
        if not restarted:
            restarted.append(1)
            world.restart(added("e"))
            for site in (b, c):
                site.participant.join()
            world.session("a").skip(0)
            run_round([b, c])
        return ask()

    monkeypatch.setattr(a.participant._session, "status", status)
    a.participant.join()
    assert a.participant._kit.project == load_site_kit(a.folder).project == world.project
    assert a.model.round == 1
    np.testing.assert_array_equal(a.w, b.w)


def test_a_server_that_shows_no_later_manifest(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks for another one by the sum, and shows the same again: the site does not go round in circles."""
    all_but_a_take(world, gives=False)
    again = world.site("a", join=False)
    session, joins = again.participant._session, list[int]()
    join, download = session.join, session.download

    def count() -> Any:
        joins.append(1)
        return join()

    def other(round: int, path: Path, progress: Any = None) -> secagg.Update:
        with download(round, path, progress) as aggregate:
            stream = BytesIO(Parts.of(aggregate).but(manifest=b"x" * 32).to_bytes())
        return secagg.Update.from_bytes(stream.getvalue())

    monkeypatch.setattr(session, "join", count)
    monkeypatch.setattr(session, "download", other)
    again.participant._begun = True  # else it begins from the stored model
    with pytest.raises(ManifestMismatchError, match="join again"):
        again.participant.join()
    assert (len(joins), again.model.round) == (2, 0)


def test_an_acknowledged_update_that_is_refused_later(world: World) -> None:
    """The server has lost it, or breaks its word: no revocation excuses that, and somebody should know."""
    a, b, c = world.sites("a", "b", "c")
    a.give()
    world.stop()
    (world.run / "round-0" / "a.update").unlink()
    world.restart(added("e"))
    with pytest.raises(ManifestMismatchError) as caught:
        a.take()
    assert a.participant.renew(caught.value)
    warnings = [line for line in a.told.lines if line.startswith("warning")]
    assert warnings == [
        "warning: ATTENTION: the server had acknowledged this site's update of round 0, and refuses it now although "
        "nobody has been revoked: ask its operators why"
    ]
    for site in (b, c):
        site.participant.join()
    run_round([a, b, c])


def test_what_training_made_is_not_lost_by_a_later_manifest(world: World) -> None:
    """`made` twice would be other values: what is encrypted again is what was trained."""
    a, b = world.sites("a", "b")
    local = a.local
    a.participant.encrypt(local, 2.0)
    for number, name in enumerate(("d", "c"), 2):
        world.restart(removed(name))
        with pytest.raises(ManifestMismatchError) as caught:
            a.participant.upload(ignored)
        assert a.participant.renew(caught.value)
        assert a.participant._kit.project.serial == number
    b.participant.join()
    b.participant.encrypt({"w": b.w + made(0, "a")}, 2.0)
    run_round([a, b])
    np.testing.assert_allclose(a.w, local["w"], atol=2 / 2047)
    assert local["w"].any()
