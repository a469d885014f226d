"""A sum belongs to one manifest: what names it, which ones a manifest knows, and who takes sums under which."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from blake3 import blake3
from federation import federate, random_states
from signed import ROUND, Parts, Signed, sign_federation

import secagg
from secagg import Project
from secagg.errors import (
    DecryptionError,
    FormatError,
    IdentityError,
    ManifestMismatchError,
    MismatchError,
    SignatureError,
)
from secagg.trust.project import Earlier
from secagg.wire.container import pack_head, unpack_head
from secagg.wire.tail import signed_message

STRANGE = b"\xab" * 32


@pytest.fixture(scope="module")
def signed(lib) -> Signed:
    return sign_federation(federate(lib))


@pytest.fixture(scope="module")
def one() -> Signed:
    """For what no scheme has a part in."""
    return sign_federation(federate("flashe"))


@pytest.fixture(scope="module")
def states():
    return random_states(3, {"w": (5,)})


def under(signed: Signed, project: Project) -> Signed:
    """The same parties, who know another manifest."""
    return replace(signed, project=project)


# What names a manifest.


def test_its_digest_is_that_of_its_head(one):
    """32 bytes that end the head and stand before the signature; whoever signs, and before anybody has."""
    blob = one.project.sign(one.authority)
    assert one.project.digest == blob[-96:-64] == blake3(blob[:-96]).digest()
    assert Project.from_bytes(blob).digest == one.project.digest
    assert replace(one.project, signed=b"").digest == one.project.digest
    changed = [
        replace(one.project, signed=b"", **changes)
        for changes in ({"serial": 1}, {"name": "other"}, {"base": bytes(32)}, {"expires": one.project.expires + 1})
    ]
    assert len({one.project.digest, *(project.digest for project in changed)}) == 5


def test_updates_and_sums_name_it(signed, states):
    """In the head, so that each site signs it; models do not: they stay valid under later ones."""
    updates = signed.encrypt(states)
    aggregate = signed.add(updates)
    assert {it.header.manifest for it in (*updates, aggregate)} == {signed.project.digest}
    for update in updates:
        message = signed_message(update.header.head, update.tail.proofs[0].body)
        assert signed.identities[update.site].sign(message) == update.tail.proofs[0].signature
        moved = replace(update.header, manifest=STRANGE)
        assert moved.head[-32:] != update.header.head[-32:]
    assert signed.federation.site().encrypt(states[0]).header.manifest is None


def test_a_model_names_none(one, states, tmp_path):
    one.site().encrypt_model(tmp_path / "model", states[0], round=ROUND)
    with secagg.Update.open(tmp_path / "model") as model:
        assert model.header.manifest is None
        later = one.site(project=one.without("site-3"))
        np.testing.assert_array_equal(later.decrypt_model(model)["w"], states[0]["w"])
        with pytest.raises(IdentityError, match="has been revoked"):
            one.site("site-2", project=one.without("site-1")).decrypt_model(model)


# What a manifest knows of those before it.


def test_a_successor_lists_all_before_it(one):
    first = one.project
    second = one.without("site-3")
    third = under(one, second).without("site-2")
    fourth = under(one, third).reissue()
    assert [it.serial for it in (first, second, third, fourth)] == [0, 1, 2, 3]
    assert first.earlier == ()
    assert second.earlier == (Earlier(first.digest, 0),)
    assert third.earlier == (*second.earlier, Earlier(second.digest, 1))
    assert fourth.earlier == (*third.earlier, Earlier(third.digest, 2))
    assert [it.revoked for it in (first, second, third, fourth)] == [0, 1, 2, 2]
    assert Project.from_bytes(fourth.signed).earlier == fourth.earlier
    assert first.successor_of(base=bytes(32)).signed == b""


def test_which_manifests_are_known(one):
    """This one and those before; not a later one, none, or one of somebody else."""
    first, second = one.project, one.without("site-3")
    third = under(one, second).reissue()
    for known in (first.digest, second.digest, third.digest):
        third.check_manifest(known, "it")
    for project, unknown in (
        (first, second.digest),
        (second, third.digest),
        (third, None),
        (third, STRANGE),
        (third, third.digest[:-1] + bytes([third.digest[-1] ^ 1])),
    ):
        with pytest.raises(ManifestMismatchError, match=r"^it was made under (no )?manifest.* join again") as caught:
            project.check_manifest(unknown, "it")
        assert f"of serial {project.serial}" in str(caught.value)
        assert isinstance(caught.value, MismatchError)


def test_what_is_void(one):
    """An open round under a manifest since which somebody was revoked; nothing else."""
    first = one.project
    renewed = one.reissue()
    revoking = under(one, renewed).without("site-3")
    after = under(one, revoking).reissue()
    assert not renewed.voids(first.digest)
    assert revoking.voids(first.digest)
    assert revoking.voids(renewed.digest)
    assert after.voids(first.digest)
    assert not after.voids(revoking.digest)
    for project in (first, renewed, revoking, after):
        assert not project.voids(project.digest)
        assert not project.voids(None)
        assert not project.voids(STRANGE)


@pytest.mark.parametrize(
    "earlier",
    [None, {}, "", [1], [[]], [["ab" * 32]], [["ab" * 32, 0, 0]], [["ab" * 31, 0]], [["AB" * 32, 0]]]
    + [[["ab" * 32, revoked]] for revoked in (-1, 1.0, True, "0", None, 2**53 + 1)],
    ids=repr,
)
def test_a_list_of_earlier_ones_that_is_none(one, earlier):
    _, header = unpack_head(one.project.sign(one.authority)[:-64])
    head = pack_head("project", header | {"earlier": earlier})
    with pytest.raises(FormatError, match="earlier|revoked"):
        Project.from_bytes(head + one.authority.sign(head))


# At the server.


@pytest.mark.parametrize("added", [0, 1])
def test_a_round_has_the_manifest_of_the_server(signed, states, added):
    """Under an earlier one, a later one, or none: the site must join again. The sum stays as it was."""
    now = under(signed, signed.reissue())
    later = under(signed, now.reissue())
    aggregator, updates = now.aggregator(), now.encrypt(states)
    for update in updates[:added]:
        aggregator.add(update)
    others = [party.site("site-2").encrypt(states[1], round=ROUND) for party in (signed, later, signed.federation)]
    for other, serial in ((others[0], 1), (others[1], 1)):
        for refused in (lambda it=other: aggregator.add(it), lambda it=other: aggregator.admit(it.header)):
            with pytest.raises(ManifestMismatchError, match=f"another project manifest .* serial {serial}: join again"):
                refused()
    with pytest.raises(ManifestMismatchError, match="under no project manifest, those of round .* give every Client"):
        aggregator.admit(others[2].header)
    for update in updates[added:]:
        aggregator.add(update)
    aggregate = aggregator.finish()
    assert aggregate.header.manifest == now.project.digest
    signed.federation.assert_mean(now.site().decrypt(aggregate), states)


def test_a_server_without_a_project_mixes_none(signed, states):
    """It takes what the first update names, and nobody signs for it."""
    later = under(signed, signed.reissue())
    updates = [
        signed.site("site-1").encrypt(states[0], round=ROUND),
        later.site("site-2").encrypt(states[1], round=ROUND),
        signed.federation.site("site-2").encrypt(states[1], round=ROUND),
    ]
    for first in range(3):
        aggregator = signed.federation.aggregator(ROUND)
        aggregator.add(updates[first])
        for other in updates:
            if other.header.manifest != updates[first].header.manifest:
                with pytest.raises(ManifestMismatchError):
                    aggregator.add(other)
    with pytest.raises(
        ManifestMismatchError, match="under a project manifest, those of round .* under none: give every Client"
    ):
        aggregator.add(updates[0])


def test_a_header_that_says_another_manifest_was_not_signed(signed, states):
    now = under(signed, signed.reissue())
    update = Parts.of(signed.site().encrypt(states[0], round=ROUND)).but(manifest=now.project.digest)
    for forged in (update.build(), update.sealed()):
        with pytest.raises(SignatureError):
            now.aggregator().add(forged)


# At a site.


def test_a_sum_under_the_own_manifest(signed, states):
    updates = signed.encrypt(states)
    mean = signed.site().decrypt(signed.add(updates), own=updates[0].nonce, round=ROUND)
    signed.federation.assert_mean(mean, states)


def test_catching_up_under_an_earlier_one(signed, states):
    """Sums of rounds before stay good under later manifests, as long as nobody in them was revoked."""
    aggregate = signed.add(signed.encrypt(states[:2]))
    renewed = under(signed, signed.reissue())
    third_gone = under(signed, signed.without("site-3"))
    for later in (renewed, third_gone, under(renewed, renewed.without("site-3"))):
        signed.federation.assert_mean(later.site().decrypt(aggregate, round=ROUND), states[:2])


def test_an_earlier_one_with_a_site_that_was_revoked(signed, states):
    aggregate = signed.add(signed.encrypt(states))
    for gone in ("site-2", "site-3"):
        later = under(signed, signed.without(gone))
        with pytest.raises(IdentityError, match=f"'{gone}' has been revoked"):
            later.site().decrypt(aggregate, round=ROUND)
    much_later = under(later, later.reissue())
    with pytest.raises(IdentityError, match="'site-3' has been revoked"):
        much_later.site().decrypt(aggregate, round=ROUND)


def test_a_sum_under_a_manifest_that_is_not_known(signed, states):
    """A later one: the site must join again. One of somebody else, or none: so it must, and finds out."""
    later = under(signed, signed.reissue())
    aggregate = later.add(later.encrypt(states))
    with pytest.raises(ManifestMismatchError, match="is neither that of .* nor an earlier one: join again"):
        signed.site().decrypt(aggregate, round=ROUND)
    for manifest in (None, STRANGE):
        with pytest.raises(ManifestMismatchError, match="the aggregate of round 4 was made under"):
            signed.site().decrypt(Parts.of(aggregate).but(manifest=manifest).build(), round=ROUND)
    signed.federation.assert_mean(later.site().decrypt(aggregate, round=ROUND), states)


def test_a_manifest_that_nobody_signed_for(signed, states):
    """A server that moves a sum from under one manifest to another: no site has signed that head."""
    later = under(signed, signed.reissue())
    aggregate = signed.add(signed.encrypt(states))
    moved = Parts.of(aggregate).but(manifest=later.project.digest).build()
    with pytest.raises(SignatureError):
        later.site().decrypt(moved, round=ROUND)
    back = Parts.of(later.add(later.encrypt(states))).but(manifest=signed.project.digest).build()
    with pytest.raises(SignatureError):
        later.site().decrypt(back, round=ROUND)


def test_a_manifest_that_keeps_a_revoked_site_in(signed, states):
    """The server runs a round under the old one; a site that knows the new one takes nothing of it."""
    revoking = under(signed, signed.without("site-3"))
    mixed = [
        signed.site("site-3").encrypt(states[2], round=ROUND),
        signed.site("site-2").encrypt(states[1], round=ROUND),
    ]
    aggregate = signed.add(mixed)
    with pytest.raises(IdentityError, match="'site-3' has been revoked"):
        revoking.site().decrypt(aggregate, round=ROUND)
    own = revoking.site().encrypt(states[0], round=ROUND)
    with pytest.raises(ManifestMismatchError):  # nor does its own update get into that sum
        signed.aggregator().add(own)


def test_none_of_this_counts_as_a_failure(one, states):
    """Nothing was decrypted: nothing was told."""
    later = under(one, one.reissue())
    aggregate, site = later.add(later.encrypt(states)), one.site()
    for _ in range(20):
        with pytest.raises(ManifestMismatchError):
            site.decrypt(aggregate)
    assert site._failures._here == 0


def test_a_site_without_a_project_asks_for_no_manifest(one, states):
    """Tags hold the sum all the same, under the manifest of its updates, whichever that is."""
    aggregate = one.add(one.encrypt(states))
    one.federation.assert_mean(one.federation.site().decrypt(aggregate), states)
    later = under(one, one.reissue())
    one.federation.assert_mean(one.federation.site().decrypt(later.add(later.encrypt(states))), states)
    for changes in ({"manifest": STRANGE}, {"manifest": later.project.digest}, {"manifest": None}):
        with pytest.raises(DecryptionError):
            one.federation.site().decrypt(Parts.of(aggregate).but(**changes).build())
