"""What a server that lies can do to the scales of a round, and which error its sites raise, before they encrypt.

It has what that of `test_malicious_server` has. Scales that are wrong would waste precision, or clip what a site sends;
those of one site alone would tell how large its values are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from federation import MODES, State, federate, random_states
from signed import ROUND, Parts, Signed, add_constant, combine, sign_federation

import secagg
from secagg import Update
from secagg.errors import (
    DecryptionError,
    DuplicateError,
    IdentityError,
    KeyMismatchError,
    LayoutError,
    ManifestMismatchError,
    MismatchError,
    QuorumError,
    RoundMismatchError,
    ScalesMismatchError,
    SecAggError,
    SignatureError,
    VerificationError,
)
from secagg.trust.tags import Authenticator
from secagg.wire.layout import Layout
from secagg.wire.tail import Proof

WEIGHTS = [1.0, 2.0, 400.0]  # site-3 decides the scales
ENCRYPT = {"exclude": ["c"]}


@dataclass(frozen=True)
class Scene:
    """The calibration of a round as it should have been, and of the round before; site-1 is lied to."""

    signed: Signed
    states: list[State]
    base: bytes
    calibrations: list[Update]
    scales: Update
    earlier: list[Update]
    earlier_scales: Update
    updates: list[Update]

    @property
    def parts(self) -> Parts:
        return Parts.of(self.scales)

    def sum(self, *factors: int) -> Parts:
        return combine(self.signed.federation, list(zip(factors, self.calibrations, strict=True)))

    def site(self, name: str = "site-1", **changes) -> secagg.Client:
        site = self.signed.site(name, **changes)
        site.restore_carry(b"")
        return site

    def encrypt(self, scales: Update, site: secagg.Client | None = None) -> Update:
        site = site or self.site()
        place = self.signed.names.index(site.name)
        return site.encrypt(self.states[place], WEIGHTS[place], ROUND, base=self.base, calibration=scales)


def make_scene(mode: str) -> Scene:
    signed = sign_federation(federate(mode, encrypt=ENCRYPT, max_clients=4))
    shapes = {"w": (50, 7), "v": (50, 7), "c": (5,)}
    states = random_states(3, shapes, largest=0.1)
    base = signed.site().base(states[0])
    earlier = signed.calibrate(states, WEIGHTS, ROUND - 1, base)
    calibrations = signed.calibrate(states, WEIGHTS, ROUND, base)
    updates = signed.encrypt(states, WEIGHTS, ROUND, base)
    return Scene(signed, states, base, calibrations, signed.add(calibrations), earlier, signed.add(earlier), updates)


@pytest.fixture(scope="module", params=[mode for mode, (_, precision) in MODES.items() if precision == "auto"])
def scene(request):
    return make_scene(request.param)


def test_what_they_all_begin_from(scene):
    assert scene.sum(1, 1, 1).build().to_bytes() == scene.scales.to_bytes()  # the server's craft makes the very same
    updates = [scene.encrypt(scene.scales, scene.site(name)) for name in scene.signed.names]
    assert {update.header.calibration for update in updates} == {scene.scales.digest()}
    mean = scene.site().decrypt(scene.signed.add(updates), like=scene.states[0], round=ROUND, base=scene.base)
    scene.signed.federation.assert_mean(mean, scene.states, WEIGHTS)


# Sums of something else than what is listed.


def dropped(scene):
    return scene.sum(1, 1, 0)


def dropped_with_its_tag(scene):
    return replace(scene.sum(1, 1, 0), tags=scene.scales.tail.tags)


def one_for_another(scene):
    return scene.sum(2, 1, 0)


def one_alone(scene):
    """What it counts would be the bins of one site."""
    return scene.sum(0, 1, 0)


def all_twice(scene):
    return scene.sum(2, 2, 2)


def earlier_in_the_place_of_one(scene):
    calibrations = [*scene.calibrations[:2], scene.earlier[2]]
    parts = combine(scene.signed.federation, [(1, calibration) for calibration in calibrations])
    return replace(scene.parts, payloads=parts.payloads, tags=parts.tags)


def those_of_the_last_round(scene):
    return replace(scene.parts, payloads=Parts.of(scene.earlier_scales).payloads, tags=scene.earlier_scales.tail.tags)


def plus_one(scene):
    """One more in every number of the block, added in the open."""
    parts = scene.parts
    parts.payloads[0] = add_constant(scene.signed.federation, parts.payloads[0], "encrypted", 0, 1)
    return parts


def zeros(scene):
    return replace(scene.parts, payloads=[bytes(len(payload)) for payload in scene.parts.payloads])


def no_tag(scene):
    return replace(scene.parts, tags=(0,) * len(scene.parts.tags))


def tag_of_a_calibration(scene):
    return replace(scene.parts, tags=scene.calibrations[0].tail.tags)


def tag_of_the_last_round(scene):
    return replace(scene.parts, tags=scene.earlier_scales.tail.tags)


SUMS: list[Callable[[Scene], Parts]] = [
    dropped,
    dropped_with_its_tag,
    one_for_another,
    one_alone,
    all_twice,
    earlier_in_the_place_of_one,
    those_of_the_last_round,
    plus_one,
    zeros,
    no_tag,
    tag_of_a_calibration,
    tag_of_the_last_round,
]


@pytest.mark.parametrize("attack", SUMS)
def test_scales_of_something_else(scene, attack):
    """The error is the one there is, it counts, and the carry is as before; real scales are still taken."""
    site, forged = scene.site(), attack(scene).build()
    assert forged.header.contributions == scene.scales.header.contributions
    for failures in (1, 2):
        with pytest.raises(DecryptionError) as caught:
            scene.encrypt(forged, site)
        assert caught.value.args == DecryptionError().args
        assert site._failures._here == failures
    assert site.carry() == b""
    scene.encrypt(scene.scales, site)


@pytest.mark.parametrize("attack", SUMS)
def test_scales_are_verified_without_a_project(scene, attack):
    """Tags hang on the HE key alone."""
    site = scene.signed.federation.site()
    site.restore_carry(b"")
    with pytest.raises(DecryptionError):
        scene.encrypt(attack(scene).build(), site)


@pytest.mark.parametrize("attack", [no_tag, tag_of_a_calibration])
def test_it_is_the_tag_that_tells(scene, attack, monkeypatch):
    monkeypatch.setattr(Authenticator, "fits", lambda *_: True)
    scene.encrypt(attack(scene).build())


# Lists of something else than who is in it, and scales of something else.


def contributions_swapped(scene):
    first, *others = scene.scales.header.contributions
    return scene.parts.but(contributions=(*others, first))


def another_nonce(scene):
    first, *others = scene.scales.header.contributions
    return scene.parts.but(contributions=(replace(first, nonce=bytes(32)), *others))


def unsigned(scene):
    return replace(scene.parts, proofs=tuple(Proof(proof.body) for proof in scene.scales.tail.proofs))


def one_unsigned(scene):
    *others, last = scene.scales.tail.proofs
    return replace(scene.parts, proofs=(*others, Proof(last.body)))


def signed_as_updates(scene):
    """A calibration is no update: what a site signs of the one says nothing of the other."""
    return scene.parts.under(*scene.updates)


def scales_of_the_last_round(scene):
    return Parts.of(scene.earlier_scales)


def scales_of_the_last_round_as_new(scene):
    return scales_of_the_last_round(scene).but(round=ROUND)


def scales_of_another_base(scene):
    """All sites have signed them, before a restart of the federation, say."""
    return Parts.of(scene.signed.add(scene.signed.calibrate(scene.states, WEIGHTS, ROUND, bytes(32))))


def scales_of_another_base_as_this(scene):
    return scales_of_another_base(scene).but(base=scene.base)


def without_a_base(scene):
    return scene.parts.but(base=None)


def one_calibration(scene):
    return Parts.of(scene.calibrations[1])


def one_calibration_as_scales(scene):
    return one_calibration(scene).but(kind="scales")


def one_calibration_listed_twice(scene):
    return one_calibration(scene).under(scene.calibrations[1], scene.calibrations[1])


def one_calibration_and_the_last_rounds(scene):
    return one_calibration(scene).under(scene.calibrations[1], scene.earlier[2])


def an_aggregate(scene):
    return Parts.of(scene.signed.add(scene.updates))


def another_epoch(scene):
    return scene.parts.but(epoch=1)


def another_key(scene):
    return scene.parts.but(key="ab" * 32)


def no_manifest(scene):
    return scene.parts.but(manifest=None)


def tensors_swapped(scene):
    """Two tensors of one shape under each other's names: each would be rounded by the other's step."""
    first, second, *others = scene.scales.header.layout.tensors
    return scene.parts.but(layout=Layout((second, first, *others)))


def clear_as_encrypted(scene):
    *others, last = scene.scales.header.layout.tensors
    return scene.parts.but(layout=Layout((*others, replace(last, role="encrypted"))))


def another_max_weight(scene):
    return scene.parts.but(aggregation=replace(scene.scales.header.aggregation, max_weight=0.5))


LISTS: dict[Callable[[Scene], Parts], type[SecAggError]] = {
    contributions_swapped: SignatureError,
    another_nonce: SignatureError,
    unsigned: SignatureError,
    one_unsigned: SignatureError,
    signed_as_updates: SignatureError,
    scales_of_the_last_round: RoundMismatchError,
    scales_of_the_last_round_as_new: SignatureError,
    scales_of_another_base: VerificationError,
    scales_of_another_base_as_this: SignatureError,
    without_a_base: VerificationError,
    one_calibration: MismatchError,
    one_calibration_as_scales: QuorumError,
    one_calibration_listed_twice: DuplicateError,
    one_calibration_and_the_last_rounds: SignatureError,
    an_aggregate: MismatchError,
    another_epoch: KeyMismatchError,
    another_key: KeyMismatchError,
    no_manifest: ManifestMismatchError,
    tensors_swapped: LayoutError,
    clear_as_encrypted: LayoutError,
    another_max_weight: MismatchError,
}


@pytest.mark.parametrize("attack", LISTS)
def test_a_list_of_something_else(scene, attack):
    """Nothing is decrypted then, and nothing counts."""
    site = scene.site()
    with pytest.raises(LISTS[attack]) as caught:
        scene.encrypt(Update.from_bytes(attack(scene).to_bytes()), site)
    assert type(caught.value) is LISTS[attack]
    assert site._failures._here == 0
    assert site.carry() == b""


@pytest.mark.parametrize("attack", [another_nonce, scales_of_the_last_round_as_new, signed_as_updates])
def test_tags_hang_on_round_and_nonces(scene, attack):
    """They tell without any signature."""
    site = scene.signed.federation.site()
    site.restore_carry(b"")
    with pytest.raises(DecryptionError):
        scene.encrypt(attack(scene).build(), site)


def test_scales_with_a_revoked_site(scene):
    site = scene.site(project=scene.signed.without("site-3"))
    with pytest.raises(IdentityError, match="'site-3' has been revoked"):
        scene.encrypt(scene.scales, site)


# Scales that are what they say they are, and not what others have.


def test_scales_without_this_site(scene):
    """A site that missed the calibration takes part: what is too large for these scales is clipped, and due."""
    scales = scene.signed.add(scene.calibrations[:2])
    site = scene.site("site-3")
    update = scene.encrypt(scales, site)
    assert update.header.calibration == scales.digest()
    assert site.clipped > 600
    assert site.report.overall.residual > 0


def shown(scene):
    """Different scales for two sites, each a sum of real calibrations, and what they send under them."""
    first, second = scene.scales, scene.signed.add(scene.calibrations[:2])
    return first, second, [scene.encrypt(first), scene.encrypt(second, scene.site("site-2"))]


def test_different_scales_for_two_sites(scene):
    """An honest sum refuses the second update; that of a server that adds it all the same is refused by all sites."""
    first, second, updates = shown(scene)
    honest = scene.signed.aggregator(calibration=first.digest())
    honest.add(updates[0])
    with pytest.raises(ScalesMismatchError, match="site-2 was made under other scales than those of round 4"):
        honest.add(updates[1])
    forged = combine(scene.signed.federation, [(1, update) for update in updates])
    for parts in (forged, forged.but(calibration=second.digest())):
        for name in scene.signed.names:
            with pytest.raises(SignatureError):
                scene.site(name).decrypt(parts.build(), round=ROUND, base=scene.base)
        with pytest.raises(DecryptionError):  # nor do the tags fit
            scene.signed.federation.site().decrypt(parts.build())


@pytest.mark.parametrize("name", [bytes(32), "those of two", "those of the last round"], ids=str)
def test_an_aggregate_that_names_other_scales(scene, name):
    """The scales are in it, encrypted; the name is signed, and the tags hang on it."""
    aggregate = scene.signed.add([scene.encrypt(scene.scales, scene.site(site)) for site in scene.signed.names])
    names = {
        "those of two": scene.signed.add(scene.calibrations[:2]).digest(),
        "those of the last round": scene.earlier_scales.digest(),
    }
    parts = Parts.of(aggregate).but(calibration=names.get(name, name))
    with pytest.raises(SignatureError):
        scene.site().decrypt(parts.build(), round=ROUND, base=scene.base)
    with pytest.raises(DecryptionError):
        scene.signed.federation.site().decrypt(parts.build())


def test_scales_in_the_place_of_the_aggregate(scene):
    """And the other way round, as what it is and as what it is not."""
    aggregate = scene.signed.add(scene.updates)
    with pytest.raises(MismatchError, match="is of kind 'scales'; kind 'aggregate' is needed here"):
        scene.site().decrypt(scene.scales, round=ROUND, base=scene.base)
    # As an aggregate of scales that were named, of the blocks that it would have.
    posing = Parts.of(aggregate)
    block = scene.signed.config.params.block_nbytes
    posing.payloads[0] = (scene.parts.payloads[0] + posing.payloads[0][block:])[: len(posing.payloads[0])]
    posing = replace(posing, tags=scene.scales.tail.tags)
    with pytest.raises(DecryptionError):
        scene.site().decrypt(posing.build(), round=ROUND, base=scene.base)
    back = replace(scene.parts, payloads=[posing.payloads[0][: len(scene.parts.payloads[0])]], tags=aggregate.tail.tags)
    with pytest.raises(DecryptionError):
        scene.encrypt(back.build())


def test_the_same_scales_in_another_order(scene):
    """The same bins under another name: updates under the two are not added."""
    other = combine(scene.signed.federation, [(1, update) for update in reversed(scene.calibrations)]).build()
    assert other.digest() != scene.scales.digest()
    updates = [scene.encrypt(scene.scales), scene.encrypt(other, scene.site("site-2"))]
    with pytest.raises(ScalesMismatchError):
        scene.signed.add(updates)
    found = [scene.site()._encryption.decrypt_scales(each).bins for each in (scene.scales, other)]
    np.testing.assert_array_equal(*found)
