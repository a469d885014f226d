"""Calibration in a round: what sites tell of their values, what they take for scales, and what they refuse as such."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from federation import CLARA, doubles, federate, other_keys, random_states
from quantised import limit_of, rebuilt
from signed import Parts, add_constant, sign_federation

import secagg
from secagg import Update, encryption
from secagg.errors import (
    ConfigError,
    DecryptionError,
    EpochError,
    FormatError,
    IdentityError,
    ImplausibleSumError,
    KeyMismatchError,
    LayoutError,
    ManifestMismatchError,
    MismatchError,
    PrecisionWarning,
    QuorumError,
    RangeError,
    RoundMismatchError,
    SignatureError,
    StateError,
    VerificationError,
)
from secagg.scheme.scales import BINS, Scales, bin_of, bound_of

VARIANTS = ["flashe", "seal-BGV", "pyfhel-BGV"]
variants = pytest.mark.parametrize("variant", VARIANTS)

BITS = 8
SHAPES = {"w": (40, 30), "conv.weight": (4, 4, 3, 3), "b": (12,)}
BASE = bytes(range(32))


def federation_of(variant="flashe", encrypt="all", **aggregation):
    params = {name: aggregation.pop(name) for name in ("error_feedback", "rounding") if name in aggregation}
    return federate(variant, {"value_bits": BITS, **params}, encrypt, max_clients=4, **aggregation)


@pytest.fixture(scope="module")
def federation():
    return federation_of()


@pytest.fixture(scope="module")
def states():
    return random_states(3, SHAPES, largest=0.01)


def add(federation, updates, kind="update", round=0, **arguments):
    aggregator = secagg.Aggregator(federation.config, federation.keys.server, round, kind=kind, **arguments)
    for update in updates:
        aggregator.add(update)
    return aggregator.finish()


def calibrate(federation, states, weights=None, round=0, base=None):
    """The scales of a round."""
    weights = weights or [1.0] * len(states)
    sites = federation.sites(len(states))
    sent = [
        site.calibrate(state, weight, round, base=base)
        for site, state, weight in zip(sites, states, weights, strict=True)
    ]
    return add(federation, sent, "calibration", round)


def encrypt(federation, states, scales, weights=None, round=0, base=None):
    weights = weights or [1.0] * len(states)
    updates = []
    for site, state, weight in zip(federation.sites(len(states)), states, weights, strict=True):
        site.restore_carry(b"")
        updates.append(site.encrypt(state, weight, round, base=base, calibration=scales))
    return updates


@pytest.fixture(scope="module")
def scales(federation, states):
    return calibrate(federation, states)


def scales_of(federation, scales):
    return federation.site()._encryption.decrypt_scales(scales)


# What is measured.


@variants
def test_a_round(variant, states):
    """Counts of the sites' largest weighted values; and the mean is as precise as steps of them are."""
    federation, weights = federation_of(variant), [5.0, 1.0, 40.0]
    scales = calibrate(federation, states, weights)
    assert scales.header.kind == "scales"
    assert scales.header.calibration is None
    assert scales.header.sites == ("site-1", "site-2", "site-3")
    largest = {name: max(w * np.abs(s[name]).max() for w, s in zip(weights, states, strict=True)) for name in SHAPES}
    assert scales_of(federation, scales).bins == tuple(bin_of(float(value)) for value in largest.values())
    updates = encrypt(federation, states, scales, weights)
    assert {update.header.calibration for update in updates} == {scales.digest()}
    aggregate = add(federation, updates)
    assert aggregate.header.calibration == scales.digest()
    mean = federation.site().decrypt(aggregate, like=states[0])
    for name, value in mean.items():
        truth = sum(w * s[name].astype(np.float64) for w, s in zip(weights, states, strict=True)) / sum(weights)
        step = bound_of(bin_of(float(largest[name]))) / limit_of(BITS) / (1 if value.ndim > 1 else 2**11)
        assert np.abs(value - truth).max() <= 3 * step / 2 / sum(weights) + 1e-9, name


def test_whoever_decrypts_needs_no_scales(federation, states, scales):
    """A site that was never asked to calibrate reads the aggregate by itself, and keeps nothing of it."""
    aggregate = add(federation, encrypt(federation, states, scales))
    mean = federation.site("nobody").decrypt(Update.from_bytes(aggregate.to_bytes()))
    for name in SHAPES:
        truth = np.mean([state[name] for state in states], axis=0)
        assert np.abs(mean[name] - truth).max() <= 0.011 / limit_of(BITS)


def test_a_calibration_says_nothing_outside(federation, states):
    """Whatever the values, it has one size, and heads that differ in the nonce alone."""
    sent = [federation.site().calibrate(state) for state in (states[0], {n: v * 1e6 for n, v in states[0].items()})]
    assert sent[0].nbytes == sent[1].nbytes
    heads = [replace(update.header, contributions=()).head for update in sent]
    assert heads[0] == heads[1]
    assert sent[0].nonce != sent[1].nonce
    assert sent[0].to_bytes()[len(sent[0].header.head) :] != sent[1].to_bytes()[len(sent[1].header.head) :]


def test_a_calibration_through_files(federation, states, tmp_path):
    for number, state in enumerate(states):
        federation.site(f"site-{number}").calibrate(state).save(tmp_path / f"{number}.secagg")
    aggregator = secagg.Aggregator(federation.config, federation.keys.server, kind="calibration")
    for number in range(3):
        with Update.open(tmp_path / f"{number}.secagg") as update:
            aggregator.admit(update.header)
            aggregator.add(update)
    aggregator.finish().save(tmp_path / "scales.secagg")
    with Update.open(tmp_path / "scales.secagg") as scales:
        updates = encrypt(federation, states, scales)
        assert updates[0].header.calibration == scales.digest()
    federation.site().encrypt_to(
        tmp_path / "up.secagg", states[0], calibration=Update.from_bytes((tmp_path / "scales.secagg").read_bytes())
    )


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_any_dtype(dtype, federation):
    """Of either library. Values are measured as they are sent, without a cast."""
    values = np.random.default_rng(0).normal(0, 1e-3, (2, 20, 20))
    if dtype == "bfloat16":
        states = [{"w": torch.tensor(value, dtype=torch.bfloat16)} for value in values]
    else:
        states = [{"w": value.astype(dtype)} for value in values]
    scales = calibrate(federation, states)
    largest = max(float(np.abs(doubles(state["w"])).max()) for state in states)
    assert scales_of(federation, scales).bins == (bin_of(largest),)
    mean = federation.site().decrypt(add(federation, encrypt(federation, states, scales)), like=states[0])
    truth = (doubles(states[0]["w"]) + doubles(states[1]["w"])) / 2
    rounding = {"float16": 2.0**-11, "bfloat16": 2.0**-8}.get(dtype, 0)
    step = bound_of(bin_of(largest)) / limit_of(BITS)
    assert np.abs(doubles(mean["w"]) - truth).max() <= step / 2 + rounding * largest + 1e-7


def test_scales_are_decrypted_once(federation, states, scales, monkeypatch):
    calls = []
    decrypt = encryption.Encryption.decrypt_scales

    def counting(self, summed):
        calls.append(summed)
        return decrypt(self, summed)

    monkeypatch.setattr(encryption.Encryption, "decrypt_scales", counting)
    site = federation.site()
    for _ in range(3):
        site.encrypt(states[0], calibration=scales)
    assert len(calls) == 1


def test_scales_that_another_thread_reads_meanwhile(federation, states, scales, monkeypatch):
    """An update is under the scales that its header names, whatever was read last."""
    site, other = federation.site(), calibrate(federation, [{n: v * 100 for n, v in s.items()} for s in states])
    remember = site._measuring.remember

    def interrupted(source, found):
        remember(source, found)
        remember(other, scales_of(federation, other))

    monkeypatch.setattr(site._measuring, "remember", interrupted)
    updates = [site.encrypt(states[0], calibration=scales), *encrypt(federation, states, scales)[1:]]
    federation.site().decrypt(add(federation, updates))


# Weights.


@variants
@pytest.mark.parametrize(
    "weights",
    [[2.0**-20, 2.0**-20], [2.0**40, 2.0**40], [2.0**-20, 2.0**40], [1.37 * 2.0**-20, 3.1e-6], [7.3, 123456.7]],
    ids=str,
)
def test_weights_without_a_largest(variant, weights, states):
    """Exact to n·Δ/(2·W), and to what is rounded of the weights: half of 2**-40 each."""
    federation, total = federation_of(variant), math.fsum(weights)
    scales = calibrate(federation, states[:2], weights)
    mean = federation.site().decrypt(add(federation, encrypt(federation, states[:2], scales, weights)))
    for (name, value), bound in zip(mean.items(), scales_of(federation, scales).bounds, strict=True):
        truth = sum(w * s[name].astype(np.float64) for w, s in zip(weights, states, strict=False)) / total
        step = bound / limit_of(BITS) if value.ndim > 1 else bound / ((2 * limit_of(BITS) + 1) ** 3 // 2)
        error = step / total + np.abs(truth) * (2 * 2.0**-41 / total + 2.0**-23)
        assert (np.abs(value - truth) <= error * (1 + 1e-6)).all(), name
        assert np.abs(value - truth).max() > 0


@pytest.mark.parametrize("weight", [2.0**-21, 2.0**-20 * (1 - 2.0**-50), 2.0**41, 2.0**40 * (1 + 2.0**-50), 1e300])
def test_weights_that_are_no_weights(weight, federation, states, scales):
    with pytest.raises(RangeError, match=r"weight .* is outside 9.53674e-07 to 1.09951e\+12: count in another unit"):
        federation.site().calibrate(states[0], weight)
    with pytest.raises(RangeError, match="count in another unit"):
        federation.site().encrypt(states[0], weight, calibration=scales)


def test_a_largest_weight_is_one_here_too(states):
    federation = federation_of(max_weight=10.0)
    scales = calibrate(federation, states, [10.0, 2.0**-21, 1.0])
    federation.site().decrypt(add(federation, encrypt(federation, states, scales, [10.0, 2.0**-21, 1.0])))
    with pytest.raises(RangeError, match="weight 10.5 is over aggregation.max_weight 10"):
        federation.site().calibrate(states[0], 10.5)


@pytest.mark.parametrize("precision", ["auto", "previous"])
def test_a_largest_weight_that_is_none(precision):
    message = r"max_weight is 2000000000000\.0; where scales are measured, use at most 1\.09951e\+12"
    with pytest.raises(ConfigError, match=message):
        federation_of(precision=precision, max_weight=2e12)


# Where there is nothing to calibrate, and where there must be.


@pytest.mark.parametrize(
    ("variant", "numbers", "precision"),
    [
        ("flashe", {"max_abs": 1.0}, "fixed"),
        ("flashe", {"precision": "previous"}, "previous"),
        ("seal-BGV", {"max_abs": 1.0}, "fixed"),
    ],
)
def test_nothing_to_calibrate(variant, numbers, precision, states):
    site = federation_of(variant, **numbers).site()
    with pytest.raises(ConfigError, match=f"precision is '{precision}': there is nothing to calibrate, call encrypt"):
        site.calibrate(states[0])


def test_ckks_has_nothing_to_calibrate(states):
    with pytest.raises(ConfigError, match="precision is 'fixed': there is nothing to calibrate, call encrypt"):
        federate("tenseal").site().calibrate(states[0])
    he = {"lib": "tenseal", "config": CLARA}
    with pytest.raises(ConfigError, match="precision is 'auto': CKKS has no steps to be measured"):
        secagg.Config.from_dict({"he": he, "aggregation": {"precision": "auto"}})


@pytest.mark.parametrize("variant", ["flashe", "tenseal"])
def test_scales_where_none_are_measured(variant, states, scales):
    federation = federate(variant, max_clients=4, max_abs=1.0)
    with pytest.raises(ConfigError, match="a calibration is given, and the scales of this configuration follow from"):
        federation.site().encrypt(states[0], calibration=scales)


def test_an_update_without_scales(federation, states, tmp_path):
    site = federation.site()
    with pytest.raises(StateError) as caught:
        site.encrypt(states[0], 1.0, 3)
    assert str(caught.value) == (
        "round 3 has no scales yet: send what calibrate(state, weight, round) returns, and pass the sum of all sites' "
        "as encrypt(…, calibration=…); or give aggregation.max_abs"
    )
    with pytest.raises(StateError, match="has no scales yet"):
        site.encrypt_to(tmp_path / "up.secagg", states[0])
    assert not list(tmp_path.iterdir())
    assert not site.carries


# Values that are none.


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["w", "clear", "b"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_what_is_no_number_is_refused_first(value, name, dtype, monkeypatch):
    """Before anything is encrypted or drawn; so it is told before the round waits for this site."""
    site = federation_of(encrypt={"exclude": ["clear"]}).site()
    monkeypatch.setattr(site._encryption, "_backend", None)
    monkeypatch.setattr(encryption, "with_nonce", None)
    state = {"w": np.ones((3, 4), dtype), "clear": np.ones((2, 2), dtype), "b": np.ones(3, dtype)}
    state[name][(-1,) * state[name].ndim] = value
    with pytest.raises(RangeError, match=rf"'{name}' has {value} at .*: find out why training diverged"):
        site.calibrate(state)


def test_what_is_no_number_is_refused_in_updates_too(federation, states, scales):
    """It may have become so since the calibration."""
    site, state = federation.site(), {name: value.copy() for name, value in states[0].items()}
    state["w"][3, 4] = np.nan
    with pytest.raises(RangeError, match=r"'w' has nan at \[3, 4\]"):
        site.encrypt(state, calibration=scales)
    assert not site.carries


def test_values_that_times_their_weight_are_no_number(federation):
    with pytest.raises(RangeError, match=r"'w' has a value that makes inf with weight 1e\+10"):
        federation.site().calibrate({"w": np.full((2, 2), 1e299)}, 1e10)


@pytest.mark.parametrize("largest", [1e300, np.nextafter(2.0**44, np.inf)])
def test_values_above_all_bins_are_refused(largest, federation):
    """They would be clipped in each round, and what they leave would grow without end."""
    state = {"w": np.array([[largest, 1.0]]), "v": np.ones(2)}
    with pytest.raises(
        RangeError, match=r"'w' has a value that makes .* with weight 1 .*, beyond 1.8e\+13: give weights"
    ):
        federation.site().calibrate(state)
    small = {"w": np.ones((1, 2)), "v": np.ones(2)}
    scales = calibrate(federation, [small, small])
    with pytest.raises(RangeError, match="'w' has a value that makes"):
        federation.site().encrypt(state, calibration=scales)


def test_clear_values_far_beyond_the_scales_are_told():
    """Nothing carries what a clear tensor drops, so a site that missed the calibration must hear of it."""
    federation = federation_of(encrypt={"exclude": ["clear"]})
    usual = {"w": np.ones((3, 4)), "clear": np.full((2, 2), 1e-6)}
    scales = calibrate(federation, [usual, usual])
    site, large = federation.site(), usual | {"clear": np.ones((2, 2))}
    with pytest.warns(PrecisionWarning, match=r"'clear', which is sent in the clear, has values of up to 1.* is lost"):
        site.encrypt(large, calibration=scales)
    with warnings.catch_warnings():
        warnings.simplefilter("error", PrecisionWarning)
        federation.site().encrypt(usual | {"clear": np.full((2, 2), 6e-2)}, calibration=scales)


@pytest.mark.parametrize(("largest", "place"), [(5e-324, 0), (2.0**44, BINS - 1)])
def test_values_at_the_ends_of_the_bins(largest, place, federation):
    """What is too small becomes zero and waits."""
    state = {"w": np.array([[largest, -largest], [0.0, largest / 2]])}
    scales = calibrate(federation, [state, state])
    assert scales_of(federation, scales).bins == (place,)
    site, other = federation.sites(2)
    updates = [each.encrypt(state, calibration=scales) for each in (site, other)]
    mean = site.decrypt(add(federation, updates))["w"]
    assert np.isfinite(mean).all()
    assert np.abs(mean).max() == pytest.approx(min(largest, bound_of(place)) if place else 0.0)
    assert site.clipped == 0
    assert np.isfinite(np.concatenate([rest.ravel() for rest in site._encryption.feedback.carry.after])).all()
    fresh = federation.site()
    fresh.restore_carry(site.carry())  # though the energy of what was due is infinite
    assert fresh.carry()


def test_bounds_of_any_size_are_reported():
    """Powers of large steps are beyond every float64, and no exception."""
    site = federate("flashe", {"value_bits": BITS, "overflow": "clip", "error_feedback": True}, max_abs=1e290).site()
    site.encrypt({"w": np.ones((2, 3))})
    assert site.clipped == 0
    assert site.report.overall.step == pytest.approx(1e290 / limit_of(BITS))
    assert [tensor.loss for tensor in site.report.tensors] == [1.0]


# Clear tensors.


@variants
def test_a_calibration_is_encrypted_whatever_is_clear(variant, states):
    """Not a word of it is in the clear, and it tells of the clear tensors, too."""
    federation = federation_of(variant, encrypt="conv")
    sent = federation.site().calibrate(states[0])
    assert [spec.role for spec in sent.header.layout.tensors] == ["clear", "encrypted", "clear"]
    assert sent.header.blocks("clear") == 0
    assert {frame.section for frame in sent.header.frames} == {"encrypted"}
    scales = calibrate(federation, states)
    assert len(scales_of(federation, scales).bins) == 3
    mean = federation.site().decrypt(add(federation, encrypt(federation, states, scales)))
    for name in ("w", "b"):
        truth = np.mean([state[name].astype(np.float64) for state in states], axis=0)
        assert np.abs(mean[name] - truth).max() <= 2.0**-24 * 0.01  # float32
    truth = np.mean([state["conv.weight"] for state in states], axis=0)
    assert 1e-6 < np.abs(mean["conv.weight"] - truth).max() <= 0.0157 / limit_of(BITS) / 2


def test_clear_values_far_beyond_their_scales():
    """A site that missed the calibration: what is clear has no residual, and so much room instead, 2**16 times."""
    federation = federation_of(encrypt={"exclude": ["clear"]})
    calibrated = {"w": np.ones((2, 2)), "clear": np.full((2, 2), 0.25)}
    scales = calibrate(federation, [calibrated] * 2)
    values = np.array([[0.25 * 2**16, -0.3], [0.25 * 2**17, 0.0]])
    late = {"w": np.ones((2, 2)), "clear": values}
    sent = [
        *encrypt(federation, [calibrated] * 2, scales)[:1],
        federation.site("late").encrypt(late, calibration=scales),
    ]
    mean = federation.site().decrypt(add(federation, sent))["clear"]
    np.testing.assert_allclose(mean * 2 - 0.25, np.minimum(values, 0.25 * 2**16), atol=1e-9)


# What is no sum of calibrations of this round.


@pytest.mark.parametrize("kind", ["update", "aggregate", "calibration", "model"])
def test_another_kind(kind, federation, states, scales, tmp_path):
    updates = encrypt(federation, states, scales)
    federation.site().encrypt_model(tmp_path / "model", states[0], round=0)
    given = {
        "update": updates[0],
        "aggregate": add(federation, updates),
        "calibration": federation.site().calibrate(states[0]),
        "model": Update.from_bytes((tmp_path / "model").read_bytes()),
    }[kind]
    remedy = ": pass the sum of all sites'" if kind == "calibration" else "$"
    with pytest.raises(MismatchError, match=f"is of kind '{kind}'; kind 'scales' is needed here{remedy}"):
        federation.site().encrypt(states[0], calibration=given)


@pytest.mark.parametrize("kind", ["bytes", "state", "path", "Scales", "header"])
def test_what_is_no_container(kind, federation, states, scales):
    given = {
        "bytes": scales.to_bytes(),
        "state": states[0],
        "path": "scales.secagg",
        "Scales": Scales((1, 2, 3)),
        "header": scales.header,
    }[kind]
    with pytest.raises(FormatError, match="an Update is needed"):
        federation.site().encrypt(states[0], calibration=given)


def test_scales_are_no_aggregate(federation, scales):
    with pytest.raises(MismatchError, match="kind 'aggregate' is needed here: pass scales as encrypt"):
        federation.site().decrypt(scales)


def test_scales_of_another_round(federation, states, scales):
    """That a server plays again."""
    with pytest.raises(RoundMismatchError, match="the scales are of round 0, not of round 1: calibrate in each round"):
        federation.site().encrypt(states[0], 1.0, 1, calibration=scales)
    site = federation.site()
    with pytest.raises(DecryptionError):
        site.encrypt(states[0], 1.0, 1, calibration=rebuilt(scales, round=1))
    assert not site.carries


def test_scales_of_another_global_model(federation, states, scales):
    based = calibrate(federation, states, base=BASE)
    site = federation.site()
    site.encrypt(states[0], base=BASE, calibration=based)
    for given, base in ((based, bytes(32)), (scales, BASE)):
        with pytest.raises(VerificationError, match="began from another global model"):
            site.encrypt(states[0], base=base, calibration=given)
    with pytest.raises(MismatchError, match="the scales of round 0 are of another global model than this update"):
        site.encrypt(states[0], calibration=based)
    with pytest.raises(DecryptionError):
        site.encrypt(states[0], base=bytes(32), calibration=rebuilt(based, base=bytes(32)))


def test_scales_of_another_model(federation, states, scales):
    site = federation.site()
    for state in ({"w": states[0]["w"]}, states[0] | {"b": np.zeros(13, np.float32)}):
        with pytest.raises(LayoutError, match="of another model than this update"):
            site.encrypt(state, calibration=scales)


def test_scales_under_another_key(federation, states, scales):
    with pytest.raises(KeyMismatchError, match="is under key"):
        other_keys(federation).site().encrypt(states[0], calibration=scales)


def test_scales_of_another_configuration(federation, states, scales):
    with pytest.raises(MismatchError, match="aggregation.max_clients 4, expected 3"):
        federation.but(max_clients=3).site().encrypt(states[0], calibration=scales)


@variants
def test_a_forged_word(variant, states):
    """One site's counts, or the number of sites, moved by whoever adds: tags do not fit, and the site counts it."""
    federation = federation_of(variant)
    scales = calibrate(federation, states)
    parts, site = Parts.of(scales), federation.site()
    forged = replace(parts, payloads=[add_constant(federation, parts.payloads[0], "encrypted", 0, 1)]).build()
    for _ in range(8):
        with pytest.raises(DecryptionError) as caught:
            site.encrypt(states[0], calibration=forged)
        assert str(caught.value) == str(DecryptionError())
    with pytest.raises(EpochError, match="8 aggregates under the key of epoch 0 did not decrypt"):
        site.encrypt(states[0], calibration=scales)
    assert not site.carries


def test_a_sum_of_one_site_is_no_sum(federation, states):
    """The server could read half of what a site's largest values are from what that does then."""
    aggregator = secagg.Aggregator(federation.config, federation.keys.server, kind="calibration")
    aggregator.add(federation.site().calibrate(states[0]))
    with pytest.raises(QuorumError, match="has 1 calibrations, min_clients is 2: wait for more sites"):
        aggregator.finish()
    aggregator.add(federation.site("site-2").calibrate(states[1]))
    scales = aggregator.finish()
    with pytest.raises(QuorumError, match="has 2 contributions, min_clients is 3"):
        federation.but(min_clients=3).site().encrypt(states[0], calibration=scales)
    with pytest.raises(QuorumError):
        federation.site().encrypt(states[0], calibration=rebuilt(scales, contributions=scales.header.contributions[:1]))


def test_a_list_that_is_not_that_of_the_sum(federation, states):
    scales = calibrate(federation, states)
    with pytest.raises(DecryptionError):
        federation.site().encrypt(states[0], calibration=rebuilt(scales, contributions=scales.header.contributions[:2]))


# Under a project.


@pytest.fixture(scope="module")
def signed():
    return sign_federation(federation_of())


def signed_scales(signed, states, **changes):
    aggregator = signed.aggregator(0, kind="calibration", **changes)
    for name, state in zip(signed.names, states, strict=True):
        aggregator.add(signed.site(name, **changes).calibrate(state))
    return aggregator.finish()


def test_scales_of_a_project(signed, states):
    scales = signed_scales(signed, states)
    assert scales.header.manifest == signed.project.digest
    signed.site().encrypt(states[0], calibration=Update.from_bytes(scales.to_bytes()))


def test_an_unsigned_calibration(signed, states):
    """The aggregator refuses it, and a site does if that let it in."""
    stranger = signed.federation.site("site-1").calibrate(states[0])
    with pytest.raises(ManifestMismatchError, match="made under no project manifest"):
        signed.aggregator(0, kind="calibration").add(stranger)
    renamed = rebuilt(signed.site().calibrate(states[0]))
    with pytest.raises(SignatureError):
        signed.aggregator(0, kind="calibration").add(renamed)
    scales = rebuilt(signed_scales(signed, states))
    with pytest.raises(SignatureError):
        signed.site().encrypt(states[0], calibration=scales)


def test_scales_under_another_manifest(signed, states):
    """A stale one passes, as an aggregate does, until a site in it is revoked; a later one is not known yet."""
    scales, later = signed_scales(signed, states), signed.reissue()
    signed.site(project=later).encrypt(states[0], calibration=scales)
    with pytest.raises(IdentityError, match="'site-2' has been revoked since it gave to round 0"):
        signed.site(project=signed.without("site-2")).encrypt(states[0], calibration=scales)
    with pytest.raises(ManifestMismatchError):
        signed.site().encrypt(states[0], calibration=signed_scales(signed, states, project=later))
    with pytest.raises(ManifestMismatchError, match="made under another project manifest"):
        signed.aggregator(0, kind="calibration", project=later).add(signed.site().calibrate(states[0]))


# At the aggregator.


def test_updates_under_other_scales(federation, states, scales):
    """Sums of words under different steps mean nothing: all updates of a round name the same."""
    other = calibrate(federation, states)
    assert other.digest() != scales.digest()  # though they say the same
    updates = [encrypt(federation, states, each) for each in (scales, other)]
    aggregator = federation.aggregator()
    aggregator.add(updates[0][0])
    known = secagg.Aggregator(federation.config, federation.keys.server, calibration=scales.digest())
    for each in (aggregator, known):
        with pytest.raises(MismatchError, match="site-2 was made under other scales than those of round 0: calibrate"):
            each.add(updates[1][1])
        with pytest.raises(MismatchError):
            each.admit(updates[1][1].header)
        each.add(updates[0][1])
    known.add(updates[0][2])
    assert known.finish().header.calibration == aggregator.finish().header.calibration == scales.digest()


def test_an_update_that_is_passed_off_as_of_other_scales(federation, states, scales):
    """By a server that showed different ones to different sites. Tags are of the scales, too."""
    other = calibrate(federation, [{n: v * 100 for n, v in s.items()} for s in states])
    first, second = encrypt(federation, states[:2], scales)[0], encrypt(federation, states[:2], other)[1]
    aggregate = add(federation, [first, rebuilt(second, calibration=scales.digest())])
    with pytest.raises(DecryptionError):
        federation.site().decrypt(aggregate)


@pytest.mark.parametrize("kind", ["update", "calibration"])
def test_an_aggregator_adds_one_kind(kind, federation, states, scales):
    sent = {"update": encrypt(federation, states, scales), "calibration": [federation.site().calibrate(states[0])]}
    other = "calibration" if kind == "update" else "update"
    aggregator = secagg.Aggregator(federation.config, federation.keys.server, kind=kind)
    aggregator.add(sent[kind][0])
    with pytest.raises(MismatchError, match=f"is of kind '{other}'; kind '{kind}' is needed here: add it to an"):
        aggregator.add(sent[other][-1])
    assert aggregator.sites == ("site-1",)


@pytest.mark.parametrize("kind", ["scales", "aggregate", "model", "", None])
def test_there_are_two_kinds_to_add(kind, federation):
    with pytest.raises(ConfigError, match="use update or calibration"):
        secagg.Aggregator(federation.config, federation.keys.server, kind=kind)


@pytest.mark.parametrize("change", ["update", "aggregate", "calibration", "scales", "fixed", "previous"])
def test_headers_that_name_scales_which_they_have_not(change, federation, states, scales):
    fixed = federate("flashe", {"value_bits": BITS}, max_clients=4, max_abs=0.01)
    previous = federation_of(precision="previous")
    updates = encrypt(federation, states, scales)
    container, fields = {
        "update": (updates[0], {"calibration": None}),
        "aggregate": (add(federation, updates), {"calibration": None}),
        "calibration": (federation.site().calibrate(states[0]), {"calibration": bytes(32)}),
        "scales": (scales, {"calibration": bytes(32)}),
        "fixed": (fixed.site().encrypt(states[0]), {"calibration": bytes(32)}),
        "previous": (previous.site().encrypt(states[0]), {"calibration": None}),
    }[change]
    assert rebuilt(container).header == container.header
    with pytest.raises(FormatError, match="names scales that it has not, or none although it has some"):
        rebuilt(container, **fields)


@pytest.mark.parametrize("precision", ["fixed", "previous"])
def test_calibrations_where_none_are(precision, states):
    numbers = {"max_abs": 0.01} if precision == "fixed" else {"precision": precision}
    update = federation_of(**numbers).site().encrypt(states[0])
    with pytest.raises(FormatError, match=f"kind 'calibration' is of precision 'auto', not of '{precision}'"):
        rebuilt(update, kind="calibration", calibration=None)


# Sums whose tags fit, and that mean nothing.


def implausible_scales(federation, states, monkeypatch):
    """A site that counts every tensor in two bins."""
    sites = federation.sites(3)
    with monkeypatch.context() as patch:
        honest = encryption.one_hot

        def twice(largest):
            counts = honest(largest)
            counts[:, 7] = 1
            return counts

        patch.setattr(encryption, "one_hot", twice)
        sent = [sites[0].calibrate(states[0])]
    sent += [site.calibrate(state) for site, state in zip(sites[1:], states[1:], strict=True)]
    return add(federation, sent, "calibration")


def implausible_sum(federation, states, scales):
    """A site that encrypts under scales that it does not name."""
    first, _, third = encrypt(federation, states, scales)
    site = federation.site("site-2")
    bins = scales_of(federation, scales).bins
    site._measuring.remember(scales, Scales(tuple(item + 1 for item in bins)))
    return add(federation, [first, site.encrypt(states[1], calibration=scales), third])


ACCUSING = ("server", "attack", "lie", "site-1", "site-2", "site-3", "forged", "malicious")


@variants
def test_counts_that_cannot_be(variant, states, monkeypatch):
    federation = federation_of(variant)
    site, wrong = federation.site(), implausible_scales(federation, states, monkeypatch)
    for _ in range(9):
        with pytest.raises(
            ImplausibleSumError, match="calibrates otherwise than the others. Compare the ver"
        ) as caught:
            site.encrypt(states[0], calibration=wrong)
        assert not any(word in str(caught.value) for word in ACCUSING)
    site.encrypt(states[0], calibration=calibrate(federation, states))  # the key is as good as before


@variants
def test_updates_under_scales_that_they_do_not_name(variant, states):
    """Nine times: it is a fault of a site, and none that a key could be attacked with."""
    federation = federation_of(variant)
    scales = calibrate(federation, states)
    site, wrong = federation.site(), implausible_sum(federation, states, scales)
    for _ in range(9):
        with pytest.raises(
            ImplausibleSumError, match="its sites have used different scales. Compare the versions"
        ) as caught:
            site.decrypt(wrong)
        assert not any(word in str(caught.value) for word in ACCUSING)
    assert not isinstance(caught.value, DecryptionError)
    site.decrypt(add(federation, encrypt(federation, states, scales)))


def test_implausible_sums_are_not_counted_in_the_file(federation, states, scales, tmp_path):
    arguments = {"failures": tmp_path / "failures"}
    site = secagg.Client(federation.config, federation.keys.client, "site-1", **arguments)
    with pytest.raises(ImplausibleSumError):
        site.decrypt(implausible_sum(federation, states, scales))
    assert federation.keys.server.fingerprint not in (tmp_path / "failures").read_text()


def test_a_mean_that_rounding_leads_beyond_its_dtype():
    """A step of values that a float16 just holds is larger than what is left above them."""
    federation, largest = federation_of(), float(np.finfo(np.float16).max)
    states = [{"w": np.full((3, 5), largest, np.float16), "v": np.full((2, 2), -65000, np.float16)} for _ in range(2)]
    aggregate = add(federation, encrypt(federation, states, calibrate(federation, states)))
    mean = federation.site().decrypt(aggregate)
    assert (mean["w"] == largest).all()
    assert (np.abs(mean["v"].astype(float) + 65000) <= 2.0**16 / limit_of(BITS)).all()
