"""Scales that follow from the aggregate of the round before: from round to round, and from site to site."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from federation import federate, other_keys
from quantised import rebuilt
from rounds_of_updates import SHAPES, Rounds, nmse, scaled, training, true_mean
from signed import Parts, add_constant, sign_federation

from secagg import Update, encryption
from secagg.errors import (
    ConfigError,
    DecryptionError,
    EpochError,
    FormatError,
    ImplausibleSumError,
    KeyMismatchError,
    LayoutError,
    MismatchError,
    QuorumError,
    RoundMismatchError,
    SignatureError,
    StateError,
)
from secagg.scheme.scales import UNKNOWN, Scales

VARIANTS = ["flashe", "seal-BGV", "pyfhel-BGV"]
WEIGHTS = [17.0, 5.0, 40.0]
BITS = 8


@pytest.fixture(scope="module")
def rounds():
    return training(len(WEIGHTS), 12, seed=4)


def run_of(variant="flashe", **params):
    return Rounds.of(WEIGHTS, variant, **{"value_bits": BITS, "precision": "previous"} | params)


@pytest.fixture
def run(rounds):
    """At round 2."""
    run = run_of()
    for states in rounds[:2]:
        run.run(states)
    return run


def encrypt(run, states, scales, index=0):
    return run.sites[index].encrypt(states[index], WEIGHTS[index], run.round, base=run.base, calibration=scales)


# Rounds.


@pytest.mark.parametrize("variant", VARIANTS)
def test_twelve_rounds(variant, rounds):
    """One or two bits less than with a calibration in each round, and no message more."""
    run = run_of(variant)
    errors = run.errors(rounds)
    assert errors[0] == 1
    assert max(errors[1:]) <= 1e-2
    assert max(errors[1:]) <= 16 * max(Rounds.of(WEIGHTS, value_bits=BITS).errors(rounds))


def test_round_0_changes_nothing(rounds):
    """Of clear tensors neither: it measures only, and what a site has trained in it is trained again."""
    run = run_of(encrypt="conv")
    mean = run.run(rounds[0])
    assert not any(np.asarray(value).any() for value in mean.values())
    assert run.sites[0].clipped == 0
    mean = run.run(rounds[0])
    truth = true_mean(rounds[0], WEIGHTS)
    assert nmse(mean, truth, ["conv1.weight", "conv2.weight"]) <= 1e-2
    assert nmse(mean, truth, ["fc.weight", "bn.running_var"]) <= 1e-12  # clear


def test_round_0_loses_no_carry(rounds):
    """What an earlier run has left to these sites stays due, in the same units, and is sent with round 1."""
    before = run_of()
    for states in rounds[:3]:
        before.run(states)
    run = run_of()
    left = [site._encryption.feedback.carry.after for site in before.sites]
    for site, earlier in zip(run.sites, before.sites, strict=True):
        site.restore_carry(earlier.carry())
    run.run(rounds[3])
    for site, residuals in zip(run.sites, left, strict=True):
        for now, then in zip(site._encryption.feedback.carry.after, residuals, strict=True):
            np.testing.assert_array_equal(now, then)
    zeros = [scaled(state, 0) for state in rounds[3]]
    sent = [run.run(zeros) for _ in range(3)]
    for index, name in enumerate(SHAPES):
        due = sum(residuals[index].astype(np.float64) for residuals in left)
        found = sum(mean[name].astype(np.float64) for mean in sent).ravel() * sum(WEIGHTS)
        now = sum(site._encryption.feedback.carry.after[index].astype(np.float64) for site in run.sites)
        assert np.abs(found + now - due).max() <= 1e-5 * np.abs(due).max()
        assert np.abs(now).max() <= np.abs(due).max() / 2


def test_updates_name_their_scales(run, rounds):
    """All sites of a round the same, each round others, under a key: the server learns nothing of them."""
    names, site = {}, run.sites[0]
    first = run_of()
    names["round 0"] = encrypt(first, rounds[0], None).header.calibration
    assert names["round 0"] == encrypt(first, rounds[0], None, 1).header.calibration
    names["round 2"] = encrypt(run, rounds[2], run.scales).header.calibration
    assert names["round 2"] == encrypt(run, rounds[2], run.scales, 1).header.calibration
    bins = site.scales_after(run.aggregate)
    assert encrypt(run, rounds[2], bins).header.calibration == names["round 2"]
    for name, arguments in {
        "another round": {"round": 3, "base": run.base},
        "another base": {"round": 2, "base": bytes(32)},
        "no base": {"round": 2},
    }.items():
        names[name] = site.encrypt(rounds[2][0], 1.0, calibration=bins, **arguments).header.calibration
    stranger = other_keys(run.federation).site()
    stranger.restore_carry(b"")
    names["another key"] = stranger.encrypt(rounds[2][0], 1.0, 2, base=run.base, calibration=bins).header.calibration
    assert len(set(names.values())) == len(names)
    assert all(len(name) == 32 for name in names.values())


def test_a_fresh_client_reads_the_scales_itself(run, rounds):
    """From the aggregate, which it need not have applied."""
    update, fresh = encrypt(run, rounds[2], run.scales), run.federation.site("site-0")
    fresh.restore_carry(b"")
    again = fresh.encrypt(
        rounds[2][0], WEIGHTS[0], 2, base=run.base, calibration=Update.from_bytes(run.scales.to_bytes())
    )
    assert again.header.calibration == update.header.calibration


def test_an_aggregate_that_was_applied_is_not_decrypted_again(run, rounds, monkeypatch):
    monkeypatch.setattr(encryption.Encryption, "decrypt", None)
    encrypt(run, rounds[2], run.scales)


def test_a_site_that_was_away_for_rounds(rounds):
    """It comes back with the latest aggregate alone."""
    run = run_of()
    for n, states in enumerate(rounds):
        here = [0, 1] if 3 <= n < 6 else [0, 1, 2]
        mean = run.exchange(states, here)
        if n and n != 6:
            truth = true_mean([states[index] for index in here], [WEIGHTS[index] for index in here])
            assert nmse(mean, truth) <= 1e-2


# Scales in the stored model.


def test_a_late_site(run, rounds, tmp_path):
    """It has the model of the round, and the scales in it; what it encrypts adds up with what others do."""
    stored, late = tmp_path / "model.secagg", run.federation.site("site-2")
    model = {name: value * 0 for name, value in rounds[0][0].items()}
    early = run.sites[0]
    early.encrypt_model(stored, model, round=2, base=run.base, scales=early.scales_after(run.aggregate))
    with Update.open(stored) as opened:
        late.decrypt_model(opened)
        scales = late.scales_after(opened)
    assert scales == early.scales_after(run.aggregate)
    assert scales.known
    late.restore_carry(b"")
    aggregator = run.aggregator()
    for index in (0, 1):
        aggregator.add(encrypt(run, rounds[2], run.scales, index))
    aggregator.add(late.encrypt(rounds[2][2], WEIGHTS[2], 2, base=run.base, calibration=scales))
    mean = late.decrypt(aggregator.finish())
    assert nmse(mean, true_mean(rounds[2], WEIGHTS)) <= 1e-2


def test_a_model_without_scales(run, rounds, tmp_path):
    """Of round 0, in which nothing is known; in a later round, updates under it are refused, not added up."""
    late, model = run.federation.site("site-2"), rounds[0][0]
    run.sites[0].encrypt_model(tmp_path / "model", model, round=2, base=run.base)
    with Update.open(tmp_path / "model") as opened:
        late.decrypt_model(opened)
        scales = late.scales_after(opened)
    assert scales == Scales((UNKNOWN,) * len(SHAPES))
    late.restore_carry(b"")
    aggregator = run.aggregator()
    aggregator.add(encrypt(run, rounds[2], run.scales))
    with pytest.raises(MismatchError, match="site-2 was made under other scales than those of round 2"):
        aggregator.add(late.encrypt(rounds[2][2], 1.0, 2, base=run.base, calibration=scales))


def test_scales_take_a_byte_a_tensor_of_a_model(run, rounds, tmp_path):
    other = Rounds.of(WEIGHTS, value_bits=BITS)
    sizes = []
    for site in (run.sites[0], other.sites[0]):
        site.encrypt_model(tmp_path / "model", rounds[0][0], round=0)
        with Update.open(tmp_path / "model") as opened:
            sizes.append(opened.header.model_nbytes)
            np.testing.assert_array_equal(site.decrypt_model(opened)["fc.weight"], rounds[0][0]["fc.weight"])
    assert sizes[0] - sizes[1] == len(SHAPES)


def test_scales_after_what_was_not_read_last(run, rounds, tmp_path):
    site = run.sites[0]
    former = run.aggregate
    assert run.federation.site().scales_after(former) is None
    run.run(rounds[2])
    assert site.scales_after(run.aggregate) != site.scales_after(former) is None
    auto = Rounds.of(WEIGHTS, value_bits=BITS)
    auto.run(rounds[0])
    assert auto.sites[0].scales_after(auto.aggregate) is None


# What is no aggregate of the round before.


def test_no_scales_at_all(run, rounds):
    with pytest.raises(StateError, match="round 2 has no scales: pass the aggregate of the round before as encrypt"):
        encrypt(run, rounds[2], None)


def test_round_0_has_no_round_before(run, rounds):
    with pytest.raises(ConfigError, match="round 0 has no round before it"):
        run_of().sites[0].encrypt(rounds[0][0], calibration=run.aggregate)


def test_an_earlier_aggregate(run, rounds):
    """That a server hands out again; also if it says that it is of the round before."""
    former = run.aggregate
    run.run(rounds[2])
    with pytest.raises(RoundMismatchError, match="is of round 1, not of round 2"):
        encrypt(run, rounds[3], former)
    with pytest.raises(MismatchError, match="aggregate of round 2 leads to another global model than this update's"):
        encrypt(run, rounds[3], rebuilt(former, round=2))
    assert run.sites[0]._encryption.feedback.carry.round == 2


def test_the_aggregate_of_another_run(run, rounds):
    """Under the same key, of the same round, from the same first model: the chain of bases tells them apart."""
    other = run_of()
    for states in rounds[3:5]:
        other.run(states)
    with pytest.raises(MismatchError, match="leads to another global model"):
        encrypt(run, rounds[2], other.aggregate)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_forged_aggregate(variant, rounds):
    """Not even its scales are taken, and it counts as any that does not decrypt."""
    run = run_of(variant)
    run.base = None  # else it leads elsewhere, which a site sees first
    run.run(rounds[0])
    parts = Parts.of(run.aggregate)
    forged = replace(
        parts, payloads=[add_constant(run.federation, parts.payloads[0], "encrypted", 0, 1), *parts.payloads[1:]]
    ).build()
    for _ in range(8):
        with pytest.raises(DecryptionError):
            encrypt(run, rounds[1], forged)
    with pytest.raises(EpochError):
        encrypt(run, rounds[1], forged)
    assert not any(rest.any() for rest in run.sites[0]._encryption.feedback.carry.after)
    encrypt(run, rounds[1], run.aggregate)  # which it has read before


def test_other_containers(run, rounds):
    update = encrypt(run, rounds[2], run.scales)
    with pytest.raises(MismatchError, match="is of kind 'update'; kind 'aggregate' is needed here"):
        encrypt(run, rounds[2], update)
    for given in (run.scales.to_bytes(), rounds[2][0], run.scales.header):
        with pytest.raises(FormatError, match="an Update is needed"):
            encrypt(run, rounds[2], given)
    auto = Rounds.of(WEIGHTS, value_bits=BITS)
    auto.calibrate(rounds[0])
    with pytest.raises(MismatchError, match="is of kind 'scales'; kind 'aggregate' is needed here"):
        encrypt(run, rounds[2], auto.scales)
    auto.exchange(rounds[0])
    with pytest.raises(MismatchError, match="aggregation.precision 'auto', expected 'previous'"):
        encrypt(run, rounds[2], auto.aggregate)


def test_another_key_model_or_number_of_sites(run, rounds):
    stranger = other_keys(run.federation).site()
    arguments = {"base": run.base, "calibration": run.aggregate}
    with pytest.raises(KeyMismatchError):
        stranger.encrypt(rounds[2][0], 1.0, 2, **arguments)
    with pytest.raises(LayoutError, match="the aggregate of round 1 are of another model than this update"):
        run.sites[0].encrypt({"w": np.zeros(5, np.float32)}, 1.0, 2, **arguments)
    with pytest.raises(QuorumError):
        run.federation.but(min_clients=3).site().encrypt(
            rounds[2][0], 1.0, 2, base=run.base, calibration=few_of(run, rounds)
        )
    with pytest.raises(LayoutError, match="there are scales of 2 tensors, and 12 are sent"):
        run.sites[0].encrypt(rounds[2][0], 1.0, 2, base=run.base, calibration=Scales((3, 4)))


def few_of(run, rounds):
    other = run_of()
    other.run(rounds[0])
    other.exchange(rounds[1], [0, 1])
    return other.aggregate


def test_an_unsigned_aggregate(rounds):
    signed = sign_federation(federate("flashe", {"value_bits": BITS}, max_clients=3, precision="previous"))
    updates = [signed.site(name).encrypt(state) for name, state in zip(signed.names, rounds[0], strict=True)]
    aggregate = signed.add(updates)
    site = signed.site()
    site.restore_carry(b"")
    site.encrypt(rounds[1][0], 1.0, 1, calibration=aggregate)
    with pytest.raises(SignatureError):
        site.encrypt(rounds[1][0], 1.0, 1, calibration=rebuilt(aggregate))


def test_an_update_under_other_scales_that_names_the_right_ones(run, rounds):
    """A program that is wrong: the sum decrypts, and is of no use; nobody is accused, and nothing is counted."""
    aggregator, right = run.aggregator(), encrypt(run, rounds[2], run.scales)
    aggregator.add(right)
    bins = run.sites[0].scales_after(run.aggregate).bins
    site = run.sites[1]
    find = site._measuring.of_round
    site._measuring.of_round = lambda *arguments: (Scales(tuple(item + 1 for item in bins)), find(*arguments)[1])
    aggregator.add(encrypt(run, rounds[2], run.scales, 1))
    aggregate = aggregator.finish()
    for _ in range(9):
        with pytest.raises(ImplausibleSumError, match="its sites have used different scales"):
            run.sites[0].decrypt(aggregate)


def test_an_update_passed_off_as_of_other_scales(run, rounds):
    first, second = encrypt(run, rounds[2], run.scales), run.sites[1]
    bins = run.sites[0].scales_after(run.aggregate).bins
    other = second.encrypt(rounds[2][1], 1.0, 2, base=run.base, calibration=Scales(tuple(item + 1 for item in bins)))
    aggregator = run.aggregator()
    aggregator.add(first)
    with pytest.raises(MismatchError, match="site-1 was made under other scales"):
        aggregator.add(other)
    aggregator.add(rebuilt(other, calibration=first.header.calibration))
    with pytest.raises(DecryptionError):
        run.sites[0].decrypt(aggregator.finish())


def test_counts_that_cannot_be(rounds, monkeypatch):
    """A site that counts itself twice, in the update: the sum is not used, and says so."""
    run, honest = run_of(), encryption.one_hot

    def twice(largest):
        counts = honest(largest)
        counts[:, 7] = 2
        return counts

    aggregator = run.aggregator()
    aggregator.add(encrypt(run, rounds[0], None))
    monkeypatch.setattr(encryption, "one_hot", twice)
    aggregator.add(encrypt(run, rounds[0], None, 1))
    aggregate = aggregator.finish()
    with pytest.raises(ImplausibleSumError, match="what it counts in bins is none that so many sites can count"):
        run.sites[2].decrypt(aggregate)
    run.base, run.round = aggregate.next_base, 1
    with pytest.raises(ImplausibleSumError):
        encrypt(run, rounds[1], aggregate)
