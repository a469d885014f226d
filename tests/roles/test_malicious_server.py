"""What a server that lies can do to a sum, and which error its sites raise.

It knows the format, the server key and every update, signs with the server's identity, and makes every digest right.
It has no secret of the sites. Every scheme verifies the sum itself, and who is listed, for which round, model and
layout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from federation import VARIANTS, State, federate, make_keys, random_states
from signed import ROUND, Parts, Signed, add_constant, combine, ring_of, sign_federation

import secagg
from secagg import Receipt, Update
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
    SecAggError,
    SignatureError,
    VerificationError,
)
from secagg.trust.tags import Authenticator, tag_moduli
from secagg.wire.container import DIGEST_NBYTES
from secagg.wire.header import Contribution
from secagg.wire.layout import Layout
from secagg.wire.tail import TAG_MODULUS, Proof, signed_message

WEIGHTS = [0.25, 0.5, 0.75]  # their sum leaves room for a doubled one: no bound on weights is in the way
ENCRYPT = {"exclude": ["c*"]}


@dataclass(frozen=True)
class Scene:
    """A round as it should have been; site-1 is the one that is lied to."""

    signed: Signed
    states: list[State]
    base: bytes
    updates: list[Update]
    aggregate: Update
    receipts: list[Receipt]
    earlier: list[Update]
    earlier_aggregate: Update

    @property
    def parts(self) -> Parts:
        return Parts.of(self.aggregate)

    def sum(self, *factors: int) -> Parts:
        return combine(self.signed.federation, list(zip(factors, self.updates, strict=True)))

    def decrypt(self, aggregate: Update | bytes, *, site: secagg.Client | None = None, **changes):
        """What a careful site does; `changes` to what it asks for."""
        if isinstance(aggregate, bytes):
            aggregate = Update.from_bytes(aggregate)
        arguments = {"like": self.states[0], "round": ROUND, "base": self.base, "receipt": self.receipts[0]} | changes
        return (site or self.signed.site()).decrypt(aggregate, **arguments)


def make_scene(mode: str) -> Scene:
    federation = federate(mode, encrypt=ENCRYPT, max_clients=4)
    signed = sign_federation(federation)
    values = federation.codec.block_values * 5 // 2
    shapes = {"w": (values,), "v": (values,), "c": (5,), "c2": (5,)}
    states = random_states(3, shapes, largest=0.4)  # far below max_abs: no bound on means is in the way
    base = signed.site().base(states[0])
    earlier = signed.encrypt(random_states(3, shapes, seed=1, largest=0.4), WEIGHTS, ROUND - 1, base)
    updates = signed.encrypt(states, WEIGHTS, ROUND, base)
    receipts = [Receipt.of(update, signed.server) for update in updates]
    return Scene(signed, states, base, updates, signed.add(updates), receipts, earlier, signed.add(earlier))


@pytest.fixture(scope="module", params=[*VARIANTS, "flashe/auto", "flashe/previous", "seal-BGV/auto"])
def scene(request):
    return make_scene(request.param)


def test_what_they_all_begin_from(scene):
    mean = scene.decrypt(scene.aggregate)
    scene.signed.federation.assert_mean(mean, scene.states, WEIGHTS)
    assert scene.signed.site().verified
    rebuilt = scene.sum(1, 1, 1).build()  # the server's craft makes the very same aggregate
    assert rebuilt.to_bytes() == scene.aggregate.to_bytes()


# Sums of something else than what is listed.


def dropped(scene):
    return scene.sum(1, 1, 0)


def dropped_with_its_tag(scene):
    return replace(scene.sum(1, 1, 0), tags=scene.aggregate.tail.tags)


def doubled(scene):
    return scene.sum(2, 1, 1)


def doubled_without_its_tag(scene):
    return replace(scene.sum(2, 1, 1), tags=scene.aggregate.tail.tags)


def one_for_another(scene):
    """As many updates as are listed: only the tag, or what hangs on nonces, can tell."""
    return scene.sum(2, 1, 0)


def one_alone(scene):
    """The update of one site as the sum of three, all of whom have signed."""
    return scene.sum(0, 1, 0)


def three_times_one(scene):
    return scene.sum(0, 3, 0)


def weighted_anew(scene):
    return scene.sum(1, 2, 3)


def all_twice(scene):
    return scene.sum(2, 2, 2)


def earlier_in_the_place_of_one(scene):
    """The list of this round over an update of the last one."""
    updates = [*scene.updates[:2], scene.earlier[2]]
    parts = combine(scene.signed.federation, [(1, update) for update in updates])
    return replace(scene.parts, payloads=parts.payloads, tags=parts.tags)


def plus_one(scene):
    """One more in every value of a block that holds no weight: a known plaintext, added in the open."""
    parts = scene.parts
    parts.payloads[0] = add_constant(scene.signed.federation, parts.payloads[0], "encrypted", 1, 1)
    return parts


def plus_one_in_the_clear(scene):
    parts = scene.parts
    parts.payloads[-1] = add_constant(scene.signed.federation, parts.payloads[-1], "clear", 0, 1)
    return parts


def one_lane(scene):
    """One more in the last word: the lowest lane of FLASHE, all values of a block of a lattice."""
    parts, ring = scene.parts, ring_of(scene.signed.federation, "encrypted")
    words = ring.from_bytes(memoryview(parts.payloads[0]))
    words[-1] = (int(words[-1]) + 1) % ring.moduli[-1]
    parts.payloads[0] = ring.to_bytes(words).tobytes()
    return parts


def blocks_swapped(scene):
    parts, size = scene.parts, scene.signed.config.params.block_nbytes
    payload = parts.payloads[0]
    parts.payloads[0] = payload[:size] + payload[2 * size : 3 * size] + payload[size : 2 * size] + payload[3 * size :]
    return parts


def clear_words_swapped(scene):
    parts, words = scene.parts, np.frombuffer(scene.parts.payloads[-1], np.uint64).copy()
    words[[0, 1]] = words[[1, 0]]
    parts.payloads[-1] = words.tobytes()
    return parts


def zeros_in_the_clear(scene):
    parts = scene.parts
    parts.payloads[-1] = bytes(len(parts.payloads[-1]))
    return parts


def behind_the_end(scene):
    """The last word of a block of clear tensors, which is padding."""
    parts, words = scene.parts, np.frombuffer(scene.parts.payloads[-1], np.uint64).copy()
    words[-1] = 1
    parts.payloads[-1] = words.tobytes()
    return parts


def another_tag(scene):
    first, *others = scene.parts.tags
    return replace(scene.parts, tags=((first + 1) % TAG_MODULUS, *others))


def another_last_tag(scene):
    """In a lattice scheme one of the elements of words, one more: a forger must hit all of them."""
    *others, last = scene.parts.tags
    modulus = tag_moduli(scene.signed.federation.keys.server)[-1]
    return replace(scene.parts, tags=(*others, (last + 1) % modulus))


def no_tag(scene):
    return replace(scene.parts, tags=(0,) * len(scene.parts.tags))


def tag_of_an_update(scene):
    return replace(scene.parts, tags=scene.updates[0].tail.tags)


def tag_of_the_last_round(scene):
    return replace(scene.parts, tags=scene.earlier_aggregate.tail.tags)


#: What every scheme refuses in the same way.
SUMS: list[Callable[[Scene], Parts]] = [
    dropped,
    dropped_with_its_tag,
    doubled,
    doubled_without_its_tag,
    one_for_another,
    one_alone,
    three_times_one,
    weighted_anew,
    all_twice,  # the mean is the same
    earlier_in_the_place_of_one,
    plus_one,
    plus_one_in_the_clear,
    one_lane,
    blocks_swapped,
    clear_words_swapped,
    zeros_in_the_clear,
    behind_the_end,
]
TAGS = [another_tag, another_last_tag, no_tag, tag_of_an_update, tag_of_the_last_round]


@pytest.mark.parametrize("attack", [*SUMS, *TAGS])
def test_a_sum_of_something_else(scene, attack):
    forged = attack(scene).build()
    assert forged.header.contributions == scene.aggregate.header.contributions
    with pytest.raises(DecryptionError) as caught:
        scene.decrypt(forged)
    assert caught.value.args == DecryptionError().args


@pytest.mark.parametrize("attack", [plus_one, plus_one_in_the_clear, zeros_in_the_clear, behind_the_end, *TAGS])
def test_it_is_the_tag_that_tells(scene, attack, monkeypatch):
    """Without it, these sums look like any other."""
    monkeypatch.setattr(Authenticator, "fits", lambda *_: True)
    scene.decrypt(attack(scene).build())


@pytest.mark.parametrize("attack", SUMS)
def test_a_sum_is_verified_without_project_and_receipt(scene, attack):
    """Tags hang on the HE key alone."""
    with pytest.raises(DecryptionError):
        scene.signed.federation.site().decrypt(attack(scene).build())


def test_frames_swapped(lib):
    """Two whole frames of clear tensors, and the digests made right."""
    signed = sign_federation(federate(lib, encrypt=ENCRYPT))
    states = random_states(2, {"w": (5,), "c": (1 << 18,)}, largest=0.1)
    parts = Parts.of(signed.add(signed.encrypt(states)))
    _, first, second = [len(payload) for payload in parts.payloads]
    assert first == second
    parts.payloads[1:] = parts.payloads[:0:-1]
    with pytest.raises(DecryptionError):
        signed.site().decrypt(parts.build())


# Lists of something else than who is in it.


def left_out(scene):
    """Site-1 has a receipt and is in no sum."""
    return combine(scene.signed.federation, [(1, update) for update in scene.updates[1:]])


def tails_swapped(scene):
    """All of the last round's tail; receipts are not what sees it, as a site that joins late has none."""
    return replace(scene.parts, tags=scene.earlier_aggregate.tail.tags, proofs=scene.earlier_aggregate.tail.proofs)


def signatures_swapped(scene):
    first, second, third = scene.aggregate.tail.proofs
    proofs = replace(first, signature=second.signature), replace(second, signature=first.signature), third
    return replace(scene.parts, proofs=proofs)


def proofs_swapped(scene):
    first, *others = scene.aggregate.tail.proofs
    return replace(scene.parts, proofs=(*others, first))


def contributions_swapped(scene):
    first, *others = scene.aggregate.header.contributions
    return scene.parts.but(contributions=(*others, first))


def nonces_swapped(scene):
    items = scene.aggregate.header.contributions
    nonces = [items[1].nonce, items[0].nonce, items[2].nonce]
    return scene.parts.but(
        contributions=tuple(replace(item, nonce=nonce) for item, nonce in zip(items, nonces, strict=True))
    )


def another_nonce(scene):
    first, *others = scene.aggregate.header.contributions
    return scene.parts.but(contributions=(replace(first, nonce=bytes(32)), *others))


def unsigned(scene):
    return replace(scene.parts, proofs=tuple(Proof(proof.body) for proof in scene.aggregate.tail.proofs))


def one_unsigned(scene):
    *others, last = scene.aggregate.tail.proofs
    return replace(scene.parts, proofs=(*others, Proof(last.body)))


def signed_by_the_server(scene):
    *others, last = scene.aggregate.tail.proofs
    head = scene.updates[2].header.head
    signature = scene.signed.server.sign(signed_message(head, last.body))
    return replace(scene.parts, proofs=(*others, Proof(last.body, signature)))


def signatures_of_the_last_round(scene):
    proofs = [
        replace(proof, signature=old.signature)
        for proof, old in zip(scene.aggregate.tail.proofs, scene.earlier_aggregate.tail.proofs, strict=True)
    ]
    return replace(scene.parts, proofs=tuple(proofs))


def another_body(scene):
    first, *others = scene.aggregate.tail.proofs
    return replace(scene.parts, proofs=(replace(first, body=bytes(32)), *others))


def an_old_aggregate(scene):
    return Parts.of(scene.earlier_aggregate)


def an_old_aggregate_as_new(scene):
    return Parts.of(scene.earlier_aggregate).but(round=ROUND)


def this_round_of_another_base(scene):
    """All sites signed it, before a restart of the federation, say: the same round from another global model."""
    base = bytes(32)
    return Parts.of(scene.signed.add(scene.signed.encrypt(scene.states, WEIGHTS, ROUND, base)))


def another_base_as_this(scene):
    return this_round_of_another_base(scene).but(base=scene.base)


def without_a_base(scene):
    return scene.parts.but(base=None)


def one_update(scene):
    return Parts.of(scene.updates[1])


def one_update_as_aggregate(scene):
    return Parts.of(scene.updates[1]).but(kind="aggregate")


def one_update_listed_twice(scene):
    return Parts.of(scene.updates[1]).under(scene.updates[1], scene.updates[1])


def one_update_under_two_names(scene):
    """As if site-3 had sent it, too: a site's name with another nonce, and the signature that is at hand."""
    parts = Parts.of(scene.updates[1]).under(scene.updates[1], scene.updates[1])
    first, _ = parts.header.contributions
    return parts.but(contributions=(first, Contribution("site-3", bytes(32))))


def one_update_and_an_unsigned_site(scene):
    parts = one_update_under_two_names(scene)
    return replace(parts, proofs=(parts.proofs[0], Proof(parts.proofs[0].body)))


def one_update_and_a_site_of_the_servers(scene):
    """A site that the server has made up, and for which it signs."""
    parts = Parts.of(scene.updates[1])
    made_up = parts.but(contributions=(Contribution("site-9", bytes(32)),)).header
    body = parts.proofs[0].body
    proof = Proof(body, scene.signed.server.sign(signed_message(made_up.head, body)))
    both = (*parts.header.contributions, *made_up.contributions)
    return replace(parts.but(kind="aggregate", contributions=both), proofs=(*parts.proofs, proof))


def one_update_and_the_server_itself(scene):
    parts = one_update_and_a_site_of_the_servers(scene)
    first, second = parts.header.contributions
    return parts.but(contributions=(first, replace(second, site="server")))


def one_update_and_the_last_rounds(scene):
    return Parts.of(scene.updates[1]).under(scene.updates[1], scene.earlier[2])


def another_epoch(scene):
    return scene.parts.but(epoch=1)


def another_key(scene):
    return scene.parts.but(key="ab" * 32)


def tensors_swapped(scene):
    """Two tensors of one shape under each other's names."""
    first, second, *others = scene.aggregate.header.layout.tensors
    return scene.parts.but(layout=Layout((second, first, *others)))


def another_shape(scene):
    first, *others = scene.aggregate.header.layout.tensors
    return scene.parts.but(layout=Layout((replace(first, shape=(1, *first.shape)), *others)))


def another_dtype(scene):
    first, *others = scene.aggregate.header.layout.tensors
    return scene.parts.but(layout=Layout((replace(first, dtype="float16"), *others)))


def encrypted_as_clear(scene):
    *others, last = scene.aggregate.header.layout.tensors
    return scene.parts.but(layout=Layout((*others, replace(last, role="encrypted"))))


def another_max_weight(scene):
    return scene.parts.but(aggregation=replace(scene.aggregate.header.aggregation, max_weight=0.5))


#: What every scheme refuses, and as what; what a site asks for that sees it, where others would not.
LISTS: dict[Callable[[Scene], Parts], type[SecAggError]] = {
    left_out: VerificationError,
    signatures_swapped: SignatureError,
    one_unsigned: SignatureError,
    unsigned: SignatureError,
    signed_by_the_server: SignatureError,
    signatures_of_the_last_round: SignatureError,
    an_old_aggregate: RoundMismatchError,
    this_round_of_another_base: VerificationError,
    without_a_base: VerificationError,
    one_update: MismatchError,
    one_update_as_aggregate: QuorumError,
    one_update_listed_twice: DuplicateError,
    another_epoch: KeyMismatchError,
    another_key: KeyMismatchError,
    encrypted_as_clear: LayoutError,
    another_max_weight: MismatchError,
}

#: What the signatures see, for a site without a receipt: it joined late, or waits for an earlier round.
SIGNED: dict[Callable[[Scene], Parts], type[SecAggError]] = {
    tails_swapped: SignatureError,
    proofs_swapped: SignatureError,
    contributions_swapped: SignatureError,
    nonces_swapped: SignatureError,
    another_nonce: SignatureError,
    another_body: SignatureError,
    an_old_aggregate_as_new: SignatureError,
    another_base_as_this: SignatureError,
    one_update_under_two_names: SignatureError,
    one_update_and_an_unsigned_site: SignatureError,
    one_update_and_a_site_of_the_servers: IdentityError,
    one_update_and_the_server_itself: IdentityError,
    one_update_and_the_last_rounds: SignatureError,
    tensors_swapped: SignatureError,
    another_shape: SignatureError,
    another_dtype: SignatureError,
}


@pytest.mark.parametrize("attack", LISTS)
def test_a_list_of_something_else(scene, attack):
    with pytest.raises(LISTS[attack]) as caught:
        scene.decrypt(attack(scene).to_bytes())
    assert type(caught.value) is LISTS[attack]


@pytest.mark.parametrize("attack", SIGNED)
def test_a_list_that_nobody_signed(scene, attack):
    with pytest.raises(SIGNED[attack]) as caught:
        scene.decrypt(attack(scene).to_bytes(), receipt=None)
    assert type(caught.value) is SIGNED[attack]


@pytest.mark.parametrize("attack", [tensors_swapped, another_shape, another_dtype, without_a_base])
def test_a_site_that_has_no_model_yet(scene, attack):
    """Layout and base are signed: a site without either takes no other."""
    with pytest.raises(SignatureError):
        scene.decrypt(attack(scene).build(), like=None, base=None, receipt=None)


@pytest.mark.parametrize("attack", [tensors_swapped, an_old_aggregate_as_new, another_nonce, nonces_swapped])
def test_tags_hang_on_round_and_layout_and_nonces(scene, attack):
    """They tell without any signature."""
    with pytest.raises(DecryptionError):
        scene.signed.federation.site().decrypt(attack(scene).build())


def test_an_aggregate_of_another_model(scene):
    """All sites have signed it: what tells is the model at hand."""
    states = [{**state, "v": state["v"].reshape(1, -1)} for state in scene.states]
    other = scene.signed.add(scene.signed.encrypt(states, WEIGHTS, ROUND, scene.base))
    with pytest.raises(LayoutError, match="another model than `like`"):
        scene.decrypt(other, receipt=None)


def test_nothing_was_decrypted(scene):
    """A list that is refused tells the server nothing about the key, and does not count."""
    site = scene.signed.site()
    for attack in (unsigned, left_out, an_old_aggregate, one_update_as_aggregate) * 3:
        with pytest.raises(LISTS[attack]):
            scene.decrypt(attack(scene).build(), site=site)
    scene.decrypt(scene.aggregate, site=site)


def test_an_aggregate_with_a_revoked_site(scene):
    site = scene.signed.site(project=scene.signed.without("site-3"))
    with pytest.raises(IdentityError, match="'site-3' has been revoked"):
        scene.decrypt(scene.aggregate, site=site)


def test_a_revoked_site_reads_no_more(scene):
    with pytest.raises(IdentityError, match="'site-1' has been revoked"):
        scene.signed.site(project=scene.signed.without("site-1"))


def test_an_aggregate_of_the_last_epoch(scene):
    """A real one, under a real key that has been rotated."""
    federation = scene.signed.federation
    keys = make_keys(federation.config.lib, federation.config.params, number=1)
    client = secagg.ClientKey(keys.client.params, keys.client.secret_material(), keys.client._root, epoch=1)
    rotated = sign_federation(replace(federation, keys=secagg.keygen.KeyPair(client, client.server)))
    with pytest.raises(KeyMismatchError, match="epoch 0 of the key, expected epoch 1"):
        scene.decrypt(scene.aggregate, site=rotated.site())
    relabelled = scene.parts.but(epoch=1, key=client.fingerprint).build()
    with pytest.raises(ManifestMismatchError):
        scene.decrypt(relabelled, site=rotated.site(), receipt=None)
    manifest = rotated.project.digest
    with pytest.raises(SignatureError):
        scene.decrypt(Parts.of(relabelled).but(manifest=manifest).build(), site=rotated.site(), receipt=None)


# Sites that are shown different sums.


def test_different_aggregates_for_two_sites(scene):
    """Each of them adds up, and fits the receipt of the site that sees it. The next round has no common base."""
    signed, base = scene.signed, scene.base
    first = signed.add(scene.updates[:2], base=base)
    second = signed.add(scene.updates[::2], base=base)
    assert scene.decrypt(first)
    assert scene.decrypt(second)
    assert len({scene.aggregate.next_base, first.next_base, second.next_base}) == 3
    updates = [
        signed.encrypt(scene.states, WEIGHTS, ROUND + 1, shown.next_base)[place]
        for place, shown in enumerate((first, second, second))
    ]
    honest = signed.aggregator(ROUND + 1)
    honest.add(updates[0])
    for update in updates[1:]:
        with pytest.raises(MismatchError, match="began from the global model"):
            honest.add(update)
    # A server that adds them all the same has one base to list.
    forged = combine(signed.federation, [(1, update) for update in updates])
    for shown, error in ((first, SignatureError), (second, VerificationError)):
        with pytest.raises(error):
            signed.site().decrypt(forged.build(), round=ROUND + 1, base=shown.next_base)
    with pytest.raises(SignatureError):
        signed.site("site-2").decrypt(forged.but(base=second.next_base).build(), round=ROUND + 1)


def test_the_same_sum_in_another_order(scene):
    """Whoever lists contributions in another order shows the same mean, and the next round fails all the same."""
    other = combine(scene.signed.federation, [(1, update) for update in reversed(scene.updates)]).build()
    mean, same = scene.decrypt(scene.aggregate), scene.decrypt(other)
    for name, value in mean.items():
        np.testing.assert_array_equal(value, same[name])
    assert other.next_base != scene.aggregate.next_base


# What a site must ask for to be told.


def test_what_a_site_that_asks_for_less_takes(scene):
    """Sums that are what they say they are: nothing in them is wrong but that another was due."""
    scene.decrypt(left_out(scene).build(), receipt=None)
    scene.decrypt(an_old_aggregate(scene).build(), round=None, receipt=None)
    scene.decrypt(this_round_of_another_base(scene).build(), base=None, receipt=None)


def test_a_round_that_was_run_twice(scene):
    """Its first aggregate, in the place of the second: round and base are the same, the receipt is for this one."""
    again = scene.signed.encrypt(scene.states, WEIGHTS, ROUND, scene.base)
    receipt = Receipt.of(again[0], scene.signed.server)
    with pytest.raises(VerificationError, match="has left it out"):
        scene.decrypt(scene.aggregate, receipt=receipt)


def test_a_receipt_that_lies(scene):
    """A server that signs for another body has signed for nothing: the site sees it at once."""
    update, other = scene.updates[:2]
    receipt = Receipt.of(other, scene.signed.server)
    with pytest.raises(VerificationError, match="another update"):
        receipt.check(update, scene.signed.project)
    head, body = update.header.head[-DIGEST_NBYTES:], other.tail.proofs[0].body
    mixed = Receipt(head, body, scene.signed.server.sign(b"secagg receipt v1" + head + body))
    with pytest.raises(VerificationError, match="another update"):
        mixed.check(update, scene.signed.project)
