"""Who is in a sum is part of what decrypts it: lists of contributions that are not those of the sum."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from federation import Federation, federate, make_keys, random_states
from quantised import rebuilt, renamed

from secagg import Update
from secagg.errors import (
    CapacityError,
    DecryptionError,
    DuplicateError,
    FormatError,
    KeyMismatchError,
    MismatchError,
    QuorumError,
    RoundMismatchError,
)
from secagg.trust.key import ClientKey, KeyPair
from secagg.wire.header import Contribution

#: Those whose sums need the nonces of all that are in them.
SEEDED = ["flashe", "seal", "seal-BGV", "tenseal"]
SHAPES = {"w": (60, 20)}

every = pytest.mark.parametrize("variant", SEEDED)


def federation_of(variant, **aggregation):
    return federate(variant, min_clients=2, **aggregation)


@pytest.fixture(params=SEEDED)
def federation(request):
    return federation_of(request.param)


@pytest.fixture
def aggregate(federation):
    return federation.sum(random_states(3, SHAPES))


def with_contributions(update, change):
    """The same frames; `change` is given the list and returns another."""
    return rebuilt(update, contributions=tuple(change(list(update.header.contributions))))


def test_nothing_changed_decrypts(federation, aggregate):
    """What follows would prove nothing otherwise."""
    same = with_contributions(aggregate, lambda items: items)
    federation.assert_mean(federation.site().decrypt(same), random_states(3, SHAPES))


# Lists that are not those of the sum.

STRANGER = Contribution("stranger", bytes(range(32)))

WRONG = {
    "a site is missing": lambda items: items[:-1],
    "the first is missing": lambda items: items[1:],
    "one was invented": lambda items: [*items, STRANGER],
    "one was exchanged": lambda items: [*items[:-1], STRANGER],
    "a nonce was exchanged": lambda items: [*items[:-1], Contribution(items[-1].site, STRANGER.nonce)],
    "a bit of a nonce changed": lambda items: [*items[:-1], Contribution(items[-1].site, flipped(items[-1].nonce))],
    "all are others": lambda items: [Contribution(f"x{n}", bytes([n]) * 32) for n in range(len(items))],
}


def flipped(nonce):
    return nonce[:-1] + bytes([nonce[-1] ^ 1])


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_a_list_that_is_not_that_of_the_sum(federation, aggregate, change):
    """Every value then is noise, and the error says no more than that."""
    with pytest.raises(DecryptionError) as caught:
        federation.site().decrypt(with_contributions(aggregate, change))
    assert str(caught.value) == str(DecryptionError())


def test_a_sum_that_holds_one_site_twice():
    """A server that adds past the aggregator: words added twice, listed once."""
    federation = federation_of("flashe")
    states = random_states(3, SHAPES)
    updates = [site.encrypt(state) for site, state in zip(federation.sites(3), states, strict=True)]
    twice = renamed(federation.site(), "again").encrypt(states[0])
    aggregate = federation.add([*updates, rebuilt_frames(twice, updates[0])])
    listed = with_contributions(aggregate, lambda items: items[:3])
    with pytest.raises(DecryptionError):
        federation.site().decrypt(listed)


def rebuilt_frames(update, other):
    """An update with the frames of another."""
    return rebuilt(other, contributions=update.header.contributions)


def test_sites_that_exchanged_their_nonces(aggregate, federation):
    """Pads, of words and of tags, belong to site and nonce, though c1 belongs to the nonce alone."""

    def exchange(items):
        first, second, *rest = items
        return [Contribution(first.site, second.nonce), Contribution(second.site, first.nonce), *rest]

    exchanged = with_contributions(aggregate, exchange)
    with pytest.raises(DecryptionError):
        federation.site().decrypt(exchanged)


def test_a_pad_belongs_to_its_round():
    """Of FLASHE an aggregate of another round is noise; c1 of a seeded one knows no round."""
    federation = federation_of("flashe")
    aggregate = federation.sum(random_states(2, SHAPES))
    with pytest.raises(DecryptionError):
        federation.site().decrypt(rebuilt(aggregate, round=1))


@pytest.mark.parametrize(
    ("change", "weight"),
    [
        ("one was invented", 1.0),
        ("one was invented", 0.2),
        ("a site is missing", 0.2),
        ("a site is missing", 1.0),
    ],
)
def test_a_list_of_another_length_beside_whole_ciphertexts(change, weight):
    """Lanes hold L more for each site; a wrong number of sites shifts every value, and must show."""
    federation = federate("pyfhel-BGV", {"value_bits": 5}, max_clients=9, max_abs=1.0)
    aggregate = federation.sum([{"w": np.full(4, 1 / 3)}] * 6, [weight] * 6)  # whole steps, of which there are 15
    federation.site().decrypt(aggregate)
    with pytest.raises(DecryptionError):
        federation.site().decrypt(with_contributions(aggregate, WRONG[change]))


# Lists that are none.


def test_a_site_listed_twice(federation, aggregate):
    for change in (
        lambda items: [*items, items[0]],
        lambda items: [*items, Contribution(items[0].site, STRANGER.nonce)],
        lambda items: [items[0], items[0], items[2]],
    ):
        with pytest.raises(DuplicateError, match=r"site site-1 contributes twice"):
            with_contributions(aggregate, change)


def test_a_nonce_listed_twice(federation, aggregate):
    nonce = aggregate.header.contributions[1].nonce
    for change in (
        lambda items: [*items, Contribution("other", nonce)],
        lambda items: [items[0], items[1], Contribution(items[2].site, nonce)],
    ):
        with pytest.raises(DuplicateError, match=f"nonce {nonce.hex()} contributes twice"):
            with_contributions(aggregate, change)


def test_an_aggregator_takes_a_site_once(federation):
    """Encrypted again or sent again: the first one stays, and the sum is what it was."""
    states, aggregator = random_states(3, SHAPES), federation.aggregator()
    sites = federation.sites(3)
    first = sites[0].encrypt(states[0])
    aggregator.add(first)
    for update in (first, sites[0].encrypt(states[1]), Update.from_bytes(first.to_bytes())):
        with pytest.raises(DuplicateError, match=r"site site-1 contributes twice"):
            aggregator.add(update)
        with pytest.raises(DuplicateError):
            aggregator.admit(update.header)
    for site, state in zip(sites[1:], states[1:], strict=True):
        aggregator.add(site.encrypt(state))
    federation.assert_mean(federation.site().decrypt(aggregator.finish()), states)


def test_an_aggregator_takes_a_nonce_once(federation):
    """A site that sends what it overheard under its own name; or whose random numbers repeat."""
    states, aggregator = random_states(2, SHAPES), federation.aggregator()
    first, second = federation.sites(2)
    update = first.encrypt(states[0])
    aggregator.add(update)
    nonce = update.header.contributions[0].nonce
    for copied in (
        rebuilt(update, contributions=(Contribution("site-2", nonce),)),
        rebuilt(second.encrypt(states[1]), contributions=(Contribution("site-2", nonce),)),
    ):
        with pytest.raises(DuplicateError, match=f"nonce {nonce.hex()} contributes twice"):
            aggregator.add(copied)
    aggregator.add(second.encrypt(states[1]))
    federation.assert_mean(federation.site().decrypt(aggregator.finish()), states)


@pytest.mark.parametrize(
    ("nonce", "message"),
    [
        (b"", "nonce is not 32 bytes"),
        (bytes(31), "nonce is not 32 bytes"),
        (bytes(33), "nonce is not 32 bytes"),
        (bytes(16), "nonce is not 32 bytes"),
        (bytes(64), "nonce is not 32 bytes"),
    ],
    ids=lambda value: str(len(value)),
)
def test_a_nonce_of_another_length(federation, aggregate, nonce, message):
    with pytest.raises(FormatError, match=message):
        with_contributions(aggregate, lambda items: [*items[:-1], Contribution("site-3", nonce)])
    update = federation.site().encrypt(random_states(1, SHAPES)[0])
    with pytest.raises(FormatError, match=message):
        with_contributions(update, lambda _: [Contribution("site-1", nonce)])


@pytest.mark.parametrize("site", ["", "a b", "..", "x" * 65, "é", "a\0"])
def test_a_site_that_is_none(aggregate, site):
    with pytest.raises(FormatError, match="site name"):
        with_contributions(aggregate, lambda items: [*items[:-1], Contribution(site, bytes(32))])


def test_an_update_of_several_sites_or_none(federation):
    update = federation.site().encrypt(random_states(1, SHAPES)[0])
    with pytest.raises(FormatError, match="an update has one contribution, this one lists 2"):
        with_contributions(update, lambda items: [*items, STRANGER])
    with pytest.raises(FormatError, match="no list of 1 to"):
        with_contributions(update, lambda _: [])


def test_an_aggregate_of_nobody(aggregate):
    with pytest.raises(FormatError, match="no list of 1 to"):
        with_contributions(aggregate, lambda _: [])


# Too many and too few.


@every
def test_more_contributions_than_planned(variant):
    federation = federation_of(variant, max_clients=2)
    states, aggregator = random_states(3, SHAPES), federation.aggregator()
    sites = federation.sites(3)
    for site, state in zip(sites[:2], states[:2], strict=True):
        aggregator.add(site.encrypt(state))
    update = sites[2].encrypt(states[2])
    for refused in (lambda: aggregator.add(update), lambda: aggregator.admit(update.header)):
        with pytest.raises(CapacityError, match="max_clients 2 updates are in the sum already"):
            refused()
    aggregate = aggregator.finish()
    federation.assert_mean(federation.site().decrypt(aggregate), states[:2])
    crowded = with_contributions(aggregate, lambda items: [*items, STRANGER])
    with pytest.raises(CapacityError, match="3 contributions, the sum is planned for max_clients 2"):
        federation.site().decrypt(crowded)


def test_fewer_contributions_than_demanded(federation, aggregate):
    with pytest.raises(QuorumError, match="has 3 contributions, min_clients is 4"):
        federation.but(min_clients=4).site().decrypt(aggregate)
    with pytest.raises(QuorumError, match="has 1 contributions, min_clients is 2"):
        federation.site().decrypt(with_contributions(aggregate, lambda items: items[:1]))


# Epochs and rounds.


def in_epoch(federation, epoch):
    """The same words as a key of another epoch."""
    key = federation.keys.client
    client = ClientKey(federation.config.params, key.secret_material(), key._root, epoch)
    return replace(federation, keys=KeyPair(client, client.server))


def test_another_epoch(federation, aggregate):
    later = in_epoch(federation, 1)
    assert later.keys.server.fingerprint != federation.keys.server.fingerprint
    update = federation.site("late").encrypt(random_states(1, SHAPES)[0])
    for refused in (
        lambda: later.site().decrypt(aggregate),
        lambda: later.aggregator().add(update),
        lambda: later.aggregator().admit(update.header),
        lambda: federation.site().decrypt(later.sum(random_states(2, SHAPES))),
    ):
        with pytest.raises(KeyMismatchError, match=r"is of epoch [01] of the key, expected epoch [01]"):
            refused()


def test_an_aggregate_that_claims_another_epoch(federation, aggregate):
    """The epoch is in the fingerprint too, so that a changed number alone does not do."""
    claimed = rebuilt(aggregate, epoch=1)
    with pytest.raises(KeyMismatchError, match="epoch 1"):
        federation.site().decrypt(claimed)
    with pytest.raises(KeyMismatchError, match="is under key"):
        in_epoch(federation, 1).site().decrypt(claimed)
    if federation.config.lib == "flashe":  # and in the pad
        later = in_epoch(federation, 1)
        forged = rebuilt(claimed, key=later.keys.server.fingerprint)
        with pytest.raises(DecryptionError):
            later.site().decrypt(forged)


def test_epochs_do_not_mix(federation):
    later = in_epoch(federation, 1)
    aggregator = later.aggregator()
    states = random_states(2, SHAPES)
    for site, state in zip(later.sites(2), states, strict=True):
        aggregator.add(site.encrypt(state))
    with pytest.raises(KeyMismatchError):
        aggregator.add(federation.site("site-3").encrypt(states[0]))
    later.assert_mean(later.site().decrypt(aggregator.finish()), states)


@pytest.mark.parametrize("epoch", [-1, 2**32, 1.0, True, None, "0"], ids=repr)
def test_an_epoch_that_is_none(epoch, aggregate):
    with pytest.raises(FormatError, match="epoch"):
        rebuilt(aggregate, epoch=epoch)


def test_another_round(federation):
    update = federation.site().encrypt(random_states(1, SHAPES)[0], round=4)
    aggregator = federation.aggregator(round=5)
    with pytest.raises(RoundMismatchError, match="for round 4, this is round 5"):
        aggregator.add(update)


# Sites of unequal configurations.


@every
@pytest.mark.parametrize(
    ("name", "value"),
    [("max_abs", 0.5), ("max_abs", {"default": 1.0, "w": 1.0}), ("max_clients", 3), ("max_weight", 2)],
)
def test_sites_that_quantise_unlike_are_refused(variant, name, value):
    """Their steps would be of unequal size, or their lanes elsewhere: sums would mean nothing."""
    federation = federation_of(variant)
    other, state = federation.but(**{name: value}), random_states(1, SHAPES, largest=0.5)[0]
    aggregator = federation.aggregator()
    aggregator.add(federation.site("site-1").encrypt(state))
    update = other.site("site-2").encrypt(state)
    for refused in (lambda: aggregator.add(update), lambda: aggregator.admit(update.header)):
        with pytest.raises(MismatchError, match=f"aggregation.{name} .*, expected .*: give all sites one config"):
            refused()
    assert aggregator.sites == ("site-1",)
    aggregate = other.sum([state, state])
    with pytest.raises(MismatchError, match=f"aggregation.{name}"):
        federation.site().decrypt(aggregate)


@pytest.mark.parametrize("variant", ["flashe", "seal-BGV"])
@pytest.mark.parametrize(
    "change", [{"value_bits": 7}, {"rounding": "nearest"}, {"overflow": "clip"}, {"error_feedback": True}], ids=str
)
def test_sites_that_encode_unlike_are_refused(variant, change):
    federation = federation_of(variant)
    config = federation.config
    other = Federation(replace(config, params=replace(config.params, **change)), federation.keys)
    state = random_states(1, SHAPES)[0]
    with pytest.raises(MismatchError, match=f"has other params: {next(iter(change))} [^;]*$"):
        federation.aggregator().add(other.site().encrypt(state))
    with pytest.raises(MismatchError, match="has other params"):
        federation.site().decrypt(other.sum([state, state]))


def test_keys_of_another_federation(federation, aggregate):
    keys = make_keys(federation.config.lib, federation.config.params, number=1)
    stranger = replace(federation, keys=keys)
    with pytest.raises(KeyMismatchError, match="is under key"):
        stranger.site().decrypt(aggregate)
    with pytest.raises(DecryptionError):
        stranger.site().decrypt(rebuilt(aggregate, key=keys.server.fingerprint))
