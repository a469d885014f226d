"""Who is in a sum: signatures at the aggregator, the list of an aggregate, receipts, and the chain of bases."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from federation import federate, libs_of, random_states
from signed import ROUND, Parts, Signed, combine, sign_federation

import secagg
from secagg import Client, Identity, Receipt, Update
from secagg.errors import (
    ConfigError,
    DigestError,
    FormatError,
    IdentityError,
    ManifestMismatchError,
    MismatchError,
    PrivacyWarning,
    QuorumError,
    SecAggError,
    SignatureError,
    VerificationError,
)
from secagg.wire.container import digest, frame_digest
from secagg.wire.header import Contribution
from secagg.wire.tail import TAG_MODULUS, UNSIGNED, Proof, Tail, signed_message, tail_nbytes

SHAPES = {"w": (40,), "c": (3,)}
BASE = bytes(range(32))


@pytest.fixture(scope="module")
def signed(lib) -> Signed:
    return sign_federation(federate(lib, encrypt={"exclude": ["c"]}))


@pytest.fixture(scope="module")
def states():
    return random_states(3, SHAPES)


@pytest.fixture(scope="module")
def updates(signed, states):
    return signed.encrypt(states, base=BASE)


@pytest.fixture(scope="module")
def one() -> Signed:
    """For what no scheme has a part in."""
    return sign_federation(federate("flashe"))


# Signatures at the aggregator.


def resigned(update: Update, identity: Identity | None, body: bytes | None = None, **header) -> Update:
    """The same update signed by somebody else, under another header perhaps."""
    parts = Parts.of(update).but(**header)
    body = body or parts.body()
    signature = identity.sign(signed_message(parts.header.head, body)) if identity else UNSIGNED
    return replace(parts, proofs=(Proof(body, signature),)).build()


def body_by_hand(update: Update) -> bytes:
    """BLAKE3 of the digests of head and frames; tags are not in it."""
    head = update.header.head
    digests = [frame_digest(head, frame.index, payload) for frame, payload in update.frames()]
    return digest(head[-32:] + b"".join(digests))


def test_an_update_is_signed_over_head_and_body(signed, updates):
    for name, update in zip(signed.names, updates, strict=True):
        (proof,) = update.tail.proofs
        assert proof.body == body_by_hand(update) == Parts.of(update).body()
        assert proof.signature == signed.identities[name].sign(signed_message(update.header.head, proof.body))


FOREIGN = {
    "unsigned": (lambda s, update: resigned(update, None), SignatureError, "is missing"),
    "by another site": (lambda s, update: resigned(update, s.identities["site-2"]), SignatureError, "'site-1'"),
    "by the server": (lambda s, update: resigned(update, s.server), SignatureError, "'site-1'"),
    "by nobody": (lambda s, update: resigned(update, Identity.generate()), SignatureError, "'site-1'"),
    "in another's name": (
        lambda s, update: resigned(
            update, s.identities["site-1"], contributions=(replace(update.header.contributions[0], site="site-2"),)
        ),
        SignatureError,
        "'site-2'",
    ),
    "in the name of no site": (
        lambda s, update: resigned(
            update, s.identities["site-1"], contributions=(replace(update.header.contributions[0], site="site-9"),)
        ),
        IdentityError,
        "'site-9' is not in project",
    ),
    "in the server's name": (
        lambda s, update: resigned(
            update, s.server, contributions=(replace(update.header.contributions[0], site="server"),)
        ),
        IdentityError,
        "'server' is not in project",
    ),
    "for another body": (
        lambda s, update: resigned(update, s.identities["site-1"], body=bytes(32)),
        DigestError,
        "the body is damaged",
    ),
    "as a model": (
        lambda s, update: replace(
            Parts.of(update), proofs=(Proof(body := update.tail.proofs[0].body, as_model(s, update, body)),)
        ).build(),
        SignatureError,
        "'site-1'",
    ),
}


def as_model(signed, update, body) -> bytes:
    """The site's signature for a container of another kind."""
    return signed.identities["site-1"].sign(signed_message(replace(update.header, kind="model").head, body))


@pytest.mark.parametrize(("make", "error", "match"), FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_update(signed, updates, make, error, match):
    """Refused, and the sum stays as it was."""
    aggregator = signed.aggregator()
    committed = []
    with pytest.raises(error, match=match):
        aggregator.add(make(signed, updates[0]), lambda: committed.append(1))
    assert not committed
    for update in updates:
        aggregator.add(update)
    assert aggregator.finish().to_bytes() == signed.add(updates).to_bytes()


def test_what_needs_no_frame_is_refused_by_the_head(signed, updates):
    """Before anything is received: a site that takes no part, and one that has been revoked."""
    later = signed.without("site-2")
    stranger, revoked, fine = (
        replace(updates[0].header, contributions=(Contribution(site, bytes(32)),), manifest=later.digest)
        for site in ("site-9", "site-2", "site-1")
    )
    aggregator = signed.aggregator(project=later)
    for header, match in ((stranger, "'site-9' is not in"), (revoked, "'site-2' has been revoked")):
        with pytest.raises(IdentityError, match=match):
            aggregator.admit(header)
    aggregator.admit(fine)


def test_a_revoked_site(signed, states, updates):
    """Under the manifest that revokes it, and under the one before: that is not of this round any more."""
    later = signed.without("site-2")
    aggregator = signed.aggregator(project=later)
    aggregator.add(signed.site(project=later).encrypt(states[0], round=ROUND, base=BASE))
    renamed = Parts.of(updates[1]).but(manifest=later.digest)
    with pytest.raises(IdentityError, match="'site-2' has been revoked"):
        aggregator.add(renamed.sealed())
    with pytest.raises(ManifestMismatchError):
        aggregator.add(updates[1])
    assert aggregator.sites == ("site-1",)


def test_a_federation_without_a_project(signed, updates, states):
    """Signatures are carried, and nobody asks for them."""
    federation = signed.federation
    unsigned = [resigned(update, None) for update in updates]
    for its in (unsigned, updates):
        aggregator = federation.aggregator(ROUND)
        for update in its:
            aggregator.add(update)
        aggregate = aggregator.finish()
        assert aggregate.tail.proofs == tuple(update.tail.proofs[0] for update in its)
        federation.assert_mean(federation.site().decrypt(aggregate), states)
    with pytest.raises(SignatureError):  # a site with a project does
        signed.site().decrypt(signed.add(unsigned, project=None))


# Bases.


def test_updates_agree_on_a_base(signed, states, updates):
    aggregator = signed.aggregator()
    aggregator.add(updates[0])
    for base, match in (
        (None, "site-2 names no global model that it began from"),
        (bytes(32), r"site-2 began from the global model 0000000000000000….* load the current global model"),
    ):
        other = signed.site("site-2").encrypt(states[1], round=ROUND, base=base)
        with pytest.raises(MismatchError, match=match):
            aggregator.add(other)
        with pytest.raises(MismatchError):
            aggregator.admit(other.header)
    aggregator.add(updates[1])
    assert aggregator.finish().header.base == BASE


def test_the_server_knows_the_base(signed, states, updates):
    aggregator = signed.aggregator(base=bytes(32))
    with pytest.raises(MismatchError, match=f"{BASE.hex()[:16]}…, those of round 4 begin from 0000000000000000…"):
        aggregator.add(updates[0])
    with pytest.raises(MismatchError, match="names no global model"):
        aggregator.add(signed.site().encrypt(states[0], round=ROUND))


def test_without_a_base(signed, states):
    without = signed.encrypt(states)
    aggregator = signed.aggregator()
    aggregator.add(without[0])
    with pytest.raises(MismatchError, match="names a global model .* and the sum of round 4 names none"):
        aggregator.add(signed.site("site-2").encrypt(states[1], round=ROUND, base=BASE))
    aggregate = signed.add(without)
    assert aggregate.header.base is None
    assert aggregate.next_base is None
    assert signed.site().decrypt(aggregate)
    with pytest.raises(VerificationError, match="began from another global model"):
        signed.site().decrypt(aggregate, base=BASE)


@pytest.mark.parametrize("base", [b"", bytes(31), bytes(33), "ab" * 32, 0, bytearray(32)])
def test_a_base_that_is_none(one, base, tmp_path):
    state = {"w": np.zeros(3, np.float32)}
    with pytest.raises(ConfigError, match=r"give 32 bytes, from Client.base\(\) or Update.next_base"):
        one.site().encrypt(state, base=base)
    with pytest.raises(ConfigError):
        one.site().encrypt_to(tmp_path / "u.secagg", state, base=base)
    with pytest.raises(ConfigError):
        one.site().encrypt_model(tmp_path / "m.secagg", state, round=0, base=base)
    assert not list(tmp_path.iterdir())


def test_the_chain_of_bases(one):
    """The same at all sites, whoever reads the aggregate and from where; another for every other sum."""
    states = random_states(3, {"w": (5,)})
    updates = one.encrypt(states, base=BASE)
    aggregate = one.add(updates)
    expected = digest(b"secagg base v1", BASE, aggregate.digest())
    assert aggregate.next_base == expected != BASE
    others = [
        one.add(updates[:2]),
        one.add(updates[1:]),
        one.add(updates[::-1]),
        one.add(one.encrypt(states, base=BASE)),
        one.add(one.encrypt(states, base=bytes(32))),
        one.add(one.encrypt(states, round=ROUND + 1, base=BASE)),
        replace(Parts.of(aggregate), tags=(0,)).build(),
        replace(Parts.of(aggregate), proofs=tuple(Proof(proof.body) for proof in aggregate.tail.proofs)).build(),
    ]
    assert len({aggregate.next_base, *(other.next_base for other in others)}) == 9


def test_a_digest_is_the_same_from_memory_and_file(signed, updates, tmp_path):
    aggregate = signed.add(updates)
    aggregate.save(tmp_path / "a.secagg")
    with Update.open(tmp_path / "a.secagg") as opened:
        assert opened.digest() == aggregate.digest()
        assert opened.next_base == aggregate.next_base
        assert opened.tail == aggregate.tail


def test_libraries_share_a_chain():
    """The mean in floats differs by the library, the base does not."""
    signed = sign_federation(federate("seal"))
    aggregate = signed.add(signed.encrypt(random_states(2, {"w": (5,)}), base=BASE))
    for lib in libs_of("CKKS"):
        if lib != "pyfhel":  # it has no seeds
            replace(signed, federation=signed.federation.using(lib)).site().decrypt(aggregate, base=BASE)


# Adding is committed before it is done.


def test_commit(signed, updates):
    aggregator, seen = signed.aggregator(), []
    for update in updates:
        aggregator.add(update, lambda: seen.append(aggregator.sites))
    assert seen == [(), ("site-1",), ("site-1", "site-2")]
    assert aggregator.finish().to_bytes() == signed.add(updates).to_bytes()


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt(), SecAggError("no")])
def test_a_commit_that_fails(signed, updates, error):
    """It is as if the update had not come: it may come again."""
    aggregator = signed.aggregator()

    def commit():
        raise error

    for index, update in enumerate(updates):
        with pytest.raises(type(error)):
            aggregator.add(update, commit)
        assert not aggregator.closed
        assert len(aggregator.sites) == index
        aggregator.add(update)
    assert aggregator.finish().to_bytes() == signed.add(updates).to_bytes()


# Tails.


def test_the_list_has_the_proofs_in_order(signed, updates):
    for order in (updates, updates[::-1]):
        aggregate = signed.add(order)
        assert aggregate.header.sites == tuple(update.header.site for update in order)
        assert aggregate.tail.proofs == tuple(update.tail.proofs[0] for update in order)
        assert aggregate.nbytes == len(aggregate.to_bytes()) == aggregate.header.nbytes
        for update, contribution in zip(order, aggregate.header.contributions, strict=True):
            assert aggregate.header.of(contribution).head == update.header.head


def test_tails_round_trip(one):
    head = one.encrypt(random_states(1, {"w": (3,)}))[0].header.head
    for count in (1, 2, 100):
        for tags in ((), (0,), (1,), (TAG_MODULUS - 1,), (0, 1, 2**64 - 1), (TAG_MODULUS - 1, *range(100))):
            tail = Tail(tags, tuple(Proof(bytes([n]) * 32, bytes([n]) * 64) for n in range(count)))
            packed = tail.pack(head, 3)
            assert len(packed) == tail_nbytes(len(tags), count)
            assert Tail.unpack(packed, head, 3, len(tags)) == tail
            for other in (packed[:-1] + bytes([packed[-1] ^ 1]), bytes([packed[0] ^ 2]) + packed[1:]):
                with pytest.raises(DigestError, match="the tail is damaged"):
                    Tail.unpack(other, head, 3, len(tags))
            with pytest.raises(DigestError):
                Tail.unpack(packed, head, 4, len(tags))  # the digest binds its place


@pytest.mark.parametrize("tag", [TAG_MODULUS, TAG_MODULUS + 1, 2**128 - 1])
def test_a_tag_that_is_none(one, tag):
    """A number has one form: p is not another 0."""
    update = one.encrypt(random_states(1, {"w": (3,)}))[0]
    bad = replace(Parts.of(update), tags=(tag,)).build()
    with pytest.raises(FormatError, match=r"not below 2\*\*127 - 1"):
        _ = bad.tail
    with pytest.raises(FormatError):
        one.aggregator().add(bad)


def test_another_number_of_proofs(one):
    updates = one.encrypt(random_states(3, {"w": (3,)}))
    parts = Parts.of(one.add(updates))
    for proofs in (parts.proofs[:2], (*parts.proofs, parts.proofs[0])):
        with pytest.raises(FormatError, match="truncated|trailing bytes"):
            replace(parts, proofs=proofs).build()


def test_what_is_verified_once_stays_what_it_was(one):
    """The tail of an update in memory is read once; its bytes cannot change."""
    blob = bytearray(one.encrypt(random_states(1, {"w": (3,)}))[0].to_bytes())
    update = Update.from_bytes(blob)
    blob[-40] ^= 1
    one.aggregator().add(update)


# What a site asks of a list.


def test_how_many_sites(one):
    updates = one.encrypt(random_states(3, {"w": (3,)}))
    parts = combine(one.federation, [(1, updates[0]), (1, updates[1])])
    strict = replace(one, federation=one.federation.but(min_clients=3))
    strict = replace(strict, project=one.reissue(config=strict.config))
    with pytest.raises(QuorumError, match="has 2 contributions, min_clients is 3"):
        strict.site().decrypt(parts.build())
    assert one.site().decrypt(parts.build())


@pytest.mark.parametrize("round", [-1, True, 1.0, "4", 2**32])
def test_a_round_that_is_none(one, round):
    aggregate = one.add(one.encrypt(random_states(2, {"w": (3,)})))
    with pytest.raises(SecAggError):
        one.site().decrypt(aggregate, round=round)


def test_min_clients_below_3_warns():
    """Where it is decided, and at each site; and nowhere else."""
    two, three = federate("flashe"), federate("flashe", min_clients=3)
    for act in (
        lambda: Client(two.config, two.keys.client, "site-1"),
        lambda: secagg.generate_keys(two.config),
    ):
        with pytest.warns(PrivacyWarning, match="of two sites each can compute the other's update") as caught:
            act()
        assert [warning.filename for warning in caught] == [__file__]  # the line that is to be changed
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        three.site()
        secagg.generate_keys(three.config)
        two.aggregator()  # learns nothing from sums
    assert "min_clients is 2" in two.config.aggregation.weakness
    assert three.config.aggregation.weakness is None
    assert issubclass(PrivacyWarning, UserWarning)
    assert not issubclass(PrivacyWarning, SecAggError)


def test_a_name_in_another_writing(one):
    """Sites are distinct by their names, which are compared byte for byte and belong to one key each."""
    update = one.encrypt(random_states(1, {"w": (3,)}))[0]
    for name in ("Site-1", "site-1.", "site_1"):
        twin = replace(update.header.contributions[0], site=name, nonce=bytes(32))
        parts = Parts.of(update).but(kind="aggregate", contributions=(update.header.contributions[0], twin))
        with pytest.raises(IdentityError, match="is not in project"):
            one.site().decrypt(replace(parts, proofs=parts.proofs * 2).build())


# Receipts.


@pytest.fixture(scope="module")
def update(one):
    return one.encrypt(random_states(1, {"w": (3,)}))[0]


@pytest.fixture(scope="module")
def receipt(one, update):
    return Receipt.of(update, one.server)


def test_a_receipt(one, update, receipt):
    blob = receipt.to_bytes()
    assert len(blob) == 128
    assert Receipt.from_bytes(blob) == receipt
    receipt.check(update, one.project)
    assert receipt.covers(update.header.head, update.tail.proofs[0])
    assert one.site().decrypt(one.add([update, *one.encrypt(random_states(3, {"w": (3,)}))[1:]]), receipt=receipt)


@pytest.mark.parametrize("length", [0, 1, 64, 127, 129, 4096])
def test_a_receipt_of_another_length(length):
    with pytest.raises(FormatError, match=f"a receipt has 128 bytes, not {length}"):
        Receipt.from_bytes(bytes(length))


def test_a_flipped_bit_of_a_receipt(one, update, receipt):
    for place in range(8 * 128):
        blob = bytearray(receipt.to_bytes())
        blob[place // 8] ^= 1 << place % 8
        with pytest.raises((SignatureError, VerificationError)):
            Receipt.from_bytes(bytes(blob)).check(update, one.project)


def test_a_receipt_of_somebody_else(one, update):
    for signer in (one.identities["site-1"], one.identities["site-2"], one.authority, Identity.generate()):
        with pytest.raises(SignatureError, match="not that of the server 'server'"):
            Receipt.of(update, signer).check(update, one.project)
    with pytest.raises(SignatureError, match="is missing"):
        replace(Receipt.of(update, one.server), signature=UNSIGNED).check(update, one.project)


def test_a_receipt_for_another_update(one, update):
    again = one.encrypt(random_states(1, {"w": (3,)}))[0]  # the same values, another nonce
    with pytest.raises(VerificationError, match="for another update than the one that was sent"):
        Receipt.of(again, one.server).check(update, one.project)


def test_a_sites_signature_is_no_receipt(one, update, receipt):
    """Nor the other way round: messages have purposes."""
    proof = update.tail.proofs[0]
    head = update.header.head
    confused = Receipt(head[-32:], proof.body, one.server.sign(signed_message(head, proof.body)))
    with pytest.raises(SignatureError):
        confused.check(update, one.project)
    parts = replace(Parts.of(update), proofs=(Proof(proof.body, receipt.signature),))
    with pytest.raises(SignatureError):
        one.aggregator().add(parts.build())


# What signs is what the project lists.


def test_a_rotated_signing_key(one):
    """A site with a new key: the old one signs nothing any more."""
    fresh = Identity.generate()
    sites = (replace(one.project.sites[0], public=fresh.public), *one.project.sites[1:])
    project = one.reissue(sites=sites)
    updates = one.encrypt(random_states(3, {"w": (3,)}))
    with pytest.raises(ManifestMismatchError):
        one.aggregator(project=project).add(updates[0])
    with pytest.raises(SignatureError):
        one.aggregator(project=project).add(resigned(updates[0], one.identities["site-1"], manifest=project.digest))
    with pytest.raises(SignatureError):
        one.site("site-2", project=project).decrypt(one.add(updates))
    renewed = Client(one.config, one.federation.keys.client, "site-1", identity=fresh, project=project)
    one.aggregator(project=project).add(renewed.encrypt({"w": np.zeros(3, np.float32)}, round=ROUND))
