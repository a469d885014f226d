"""What becomes of values that do not fit, and of what quantisation drops."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from federation import federate
from quantised import limit_of, quantised, renamed, weight_digits

from secagg.errors import BackendError, ConfigError, RangeError
from secagg.scheme import integer_codec
from secagg.scheme.integer_encoder import IntegerEncoder

VARIANTS = ["seal-BGV", "pyfhel-BGV", "flashe"]
variants = pytest.mark.parametrize("variant", VARIANTS)
overflows = pytest.mark.parametrize("overflow", ["error", "clip"])

BITS = 8
LIMIT = limit_of(BITS)


def federation_of(variant="flashe", encrypt="all", max_abs=1.0, value_bits=BITS, **params):
    params = {"value_bits": value_bits, "rounding": "nearest", **params}
    return federate(variant, params, encrypt, max_clients=4, max_abs=max_abs)


def mean_with_zeros(federation, update, weight=1.0):
    """The mean of an update and of zeros of weight 1, times the sum of weights: what the update holds, in steps."""
    site = federation.site("nobody")
    zeros = {spec.name: np.zeros(spec.shape) for spec in update.header.layout.tensors}
    site.restore_carry(b"")  # it joins late
    partner = renamed(site, "nobody").encrypt(zeros, 1.0, update.header.round)
    aggregator = federation.aggregator(round=update.header.round)
    aggregator.add(update)
    aggregator.add(partner)
    mean = site.decrypt(aggregator.finish())
    step = 1.0 / limit_of(federation.config.params.value_bits)
    return np.concatenate([mean[name].reshape(-1).astype(np.float64) for name in mean]) * (1 + weight) / step


def sent(federation, site, values, round, weight=1.0):
    """The integers that a site sends for values, a tensor ``w`` of max_abs 1."""
    found = mean_with_zeros(federation, site.encrypt({"w": np.asarray(values)}, weight, round), weight)
    np.testing.assert_allclose(found, np.rint(found), atol=1e-6)
    return np.rint(found)


class Refusal(Exception):
    """That an encryption was attempted."""


def refuse_encryption(monkeypatch, site):
    def cipher(round, contributions):
        raise Refusal

    monkeypatch.setattr(site._encryption._backend, "cipher", cipher)


# Values beyond their bound.


@variants
@pytest.mark.parametrize("factor", [1 + 2.0**-23, -1.5, 1e30])
def test_a_value_beyond_its_bound_is_an_error(variant, factor, monkeypatch, tmp_path):
    federation = federation_of(variant, max_abs={"default": 1.0, "b": 0.25})
    site = federation.site()
    state = {"a": np.ones((2, 3), np.float32), "b": np.full((2, 3), -0.25, np.float32)}
    site.encrypt(state)
    refuse_encryption(monkeypatch, site)
    with pytest.raises(Refusal):
        site.encrypt(state)
    state["b"][1, 2] = 0.25 * factor
    with pytest.raises(
        RangeError, match=r"'b' has .* at \[1, 2\], beyond aggregation.max_abs 0.25: raise max_abs"
    ) as e:
        site.encrypt_to(tmp_path / "up.secagg", state)
    assert "nothing was encrypted" in str(e.value)
    assert not list(tmp_path.iterdir())


@overflows
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("feedback", [False, True])
def test_what_is_no_number_is_an_error(overflow, value, dtype, feedback, monkeypatch):
    """Also where values are clipped, and in tensors that are not encrypted."""
    site = federation_of(encrypt={"exclude": ["clear"]}, overflow=overflow, error_feedback=feedback).site()
    refuse_encryption(monkeypatch, site)
    for name in ("w", "clear"):
        state = {"w": np.zeros(5, dtype), "clear": np.zeros(5, dtype)}
        state[name][3] = value
        with pytest.raises(RangeError, match=rf"'{name}' has {value} at \[3\].*: find out why.*nothing was encrypted"):
            site.encrypt(state)


@overflows
def test_a_clear_value_beyond_its_bound_is_an_error(overflow):
    """Clear tensors are not quantised, and there is nothing to count."""
    site = federation_of(encrypt={"exclude": ["clear"]}, overflow=overflow).site()
    with pytest.raises(RangeError, match="'clear' has 1.5"):
        site.encrypt({"w": np.zeros(5), "clear": np.full(5, 1.5)})


@variants
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_clipped_values_are_counted_and_sent_as_the_bound(variant, rounding):
    federation = federation_of(variant, overflow="clip", rounding=rounding)
    values = np.array([1.0, -1.0, 1.0000001, -3.0, 1e300, 0.0, 100 / LIMIT])
    site, other = federation.sites(2)
    update = site.encrypt({"w": values})
    assert site.clipped == 3
    assert other.clipped == 0
    assert np.rint(mean_with_zeros(federation, update)).tolist() == [127, -127, 127, -127, 127, 0, 100]
    site.encrypt({"w": values[:2]})
    assert site.clipped == 0
    site.encrypt({"w": values[2:].copy(), "v": values})
    assert site.clipped == 6


@pytest.mark.parametrize("weight", [1.0, 0.3, 0.01])
def test_clipped_at_the_bound_of_the_weight(weight):
    """A value is clipped at its `max_abs` and not where a lane ends."""
    federation = federation_of(overflow="clip", value_bits=16, max_abs={"default": 1.0, "b": 0.125})
    site = federation.site()
    state = {"a": np.array([5.0, -1.0, 0.999]), "b": np.array([1.0, -0.13, 0.12])}
    update = site.encrypt(state, weight)
    assert site.clipped == 3
    clipped = {"a": state["a"].clip(-1, 1), "b": state["b"].clip(-0.125, 0.125)}
    expected = np.concatenate([quantised(clipped[n], weight, bound, 16) for n, bound in (("a", 1.0), ("b", 0.125))])
    steps = mean_with_zeros(federation, update, weight)
    np.testing.assert_allclose(steps * np.repeat([1, 8], 3), expected, atol=1e-6)


def test_a_refused_update_leaves_the_count():
    site = federation_of(overflow="clip").site()
    site.encrypt({"w": np.array([2.0, 3.0])})
    with pytest.raises(RangeError):
        site.encrypt({"w": np.array([2.0, np.nan, 9.0])})
    assert site.clipped == 2


@overflows
@pytest.mark.parametrize("late", [np.nan, np.inf, 1.5])
def test_a_tensor_that_changes_while_it_is_encrypted(overflow, late, monkeypatch):
    """Values are checked once more as they are encoded; where they are clipped, so is what they have become."""
    federation = federation_of(overflow=overflow)
    site, values = federation.site(), np.zeros(10)
    encode = IntegerEncoder.encode

    def change_and_encode(self, block, blocks):
        values[7] = late
        return encode(self, block, blocks)

    monkeypatch.setattr(IntegerEncoder, "encode", change_and_encode)
    if overflow == "error":
        with pytest.raises(RangeError, match="changed to a value out of range while .* nothing was sent"):
            site.encrypt({"w": values})
    else:
        site.encrypt({"w": values})
        assert site.clipped == 1


@variants
@pytest.mark.parametrize("bound", [1e-290, 1e290])
def test_bounds_far_from_one(variant, bound):
    federation = federate(variant, {"value_bits": BITS, "rounding": "nearest"}, max_clients=4, max_abs=bound)
    state = {"w": np.array([1.0, -1.0, 0.0, 0.5]) * bound}
    mean = federation.site().decrypt(federation.sum([state, state]))["w"]
    np.testing.assert_allclose(mean, np.array([127, -127, 0, 64]) / 127 * bound, rtol=1e-14)


@pytest.mark.parametrize(("bound", "weight"), [(1e200, 1e100), (1e-200, 1e-100)])
def test_bounds_of_weighted_values_whose_steps_are_no_floats_are_refused(bound, weight):
    with pytest.raises(ConfigError, match=r"max_weight .* times max_abs cannot be quantised: let it be 1e-290 to"):
        federate("flashe", {"value_bits": 4}, max_abs=bound, max_weight=weight).site()


@pytest.mark.parametrize("bound", [5e-324, 1e-307, 0.99e-290, 1.01e290, 1.7e308])
def test_a_bound_whose_steps_are_no_floats_is_refused(bound):
    for max_abs in (bound, {"default": 1.0, "w": bound}):
        with pytest.raises(ConfigError, match=r"max_abs .* cannot be quantised: use 1e-290 to 1e290"):
            federate("flashe", {"value_bits": 4}, max_abs=max_abs).site()


# Error feedback.

FED_BACK = {"error_feedback": True}


def carry(values, rounds, limit=LIMIT, weight=1.0):
    """Integers that feedback sends round by round: what is dropped waits, in units of weighted values, in float32."""
    residual = np.zeros(len(values), np.float32)
    cap = weight * limit
    for _ in range(rounds):
        due = np.asarray(values) * weight + residual
        integers = np.rint((due * limit).clip(-cap, cap)).clip(-limit, limit)
        residual = (due - integers / limit).astype(np.float32)
        yield integers


@variants
def test_what_was_dropped_comes_back(variant):
    """Round by round the integers that the definition gives, so that no step is lost; without feedback it is."""
    values, rounds = np.array([0.4, -0.4, 10.25, 99.7, -0.01, 126.9]) / LIMIT, 8
    for feedback in (True, False):
        federation = federation_of(variant, error_feedback=feedback)
        site = federation.site()
        found = np.array([sent(federation, site, values, round) for round in range(rounds)])
        expected = list(carry(values, rounds)) if feedback else [np.rint(values * LIMIT)] * rounds
        np.testing.assert_array_equal(found, expected)
        assert (np.abs(found.sum(axis=0) - rounds * values * LIMIT).max() <= 0.5 + 1e-4) == feedback


@pytest.mark.parametrize(("rounding", "dropped"), [("nearest", 0.5), ("stochastic", 1.0)])
@pytest.mark.parametrize("weight", [1.0, 0.37])
def test_the_mean_over_rounds_closes_in_as_one_over_rounds(rounding, dropped, weight):
    """The error of the mean of R rounds is what the last one dropped, over R."""
    federation = federation_of(rounding=rounding, **FED_BACK)
    site, values = federation.site(), np.random.default_rng(0).uniform(-0.98, 0.98, 300)
    total, errors = np.zeros(300), {}
    for round in range(128):
        total += sent(federation, site, values, round, weight)
        errors[round + 1] = np.abs(total / (round + 1) - values * weight * LIMIT).max()
    for rounds, error in errors.items():
        assert error <= (dropped + 1e-4) / rounds
    assert errors[1] > dropped / 2  # nothing but feedback brought it down


def test_values_that_change_are_carried_too():
    """The sum over rounds is the sum of all values, but for what the last round dropped."""
    federation = federation_of(**FED_BACK)
    site, rng = federation.site(), np.random.default_rng(1)
    rounds = rng.uniform(-0.98, 0.98, (20, 50))
    total = sum(sent(federation, site, values, round) for round, values in enumerate(rounds))
    assert np.abs(total - rounds.sum(axis=0) * LIMIT).max() <= 0.5 + 1e-4


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_values_at_the_bound_come_back_too(rounding):
    """At a weight below 1 the bound is no whole number of steps, and what is due may be beyond it by less than one."""
    federation = federation_of(value_bits=4, rounding=rounding, **FED_BACK)
    site, values, rounds = federation.site(), np.array([1.0, -1.0, 0.99] * 20), 100
    total = sum(sent(federation, site, values, round, weight=0.9) for round in range(rounds))
    assert np.abs(total - rounds * values * 0.9 * 7).max() <= 1 + 1e-3


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_means_with_feedback_are_accepted_at_the_bound(rounding):
    """What is due beyond the bound is still within what a site expects of a mean."""
    federation = federation_of(value_bits=4, rounding=rounding, **FED_BACK)
    sites, state = federation.sites(2), {"w": np.array([1.0, -1.0, 0.95, 0.5] * 50)}
    for round in range(30):
        aggregator = federation.aggregator(round)
        for site in sites:
            aggregator.add(site.encrypt(state, 0.6, round))
        mean = sites[0].decrypt(aggregator.finish())["w"]
        assert np.abs(mean - state["w"]).max() <= 2 / (7 * 0.6) + 0.02


def test_encrypting_a_round_again_starts_where_it_started():
    """An update that was lost is replaced by one that carries the same, and what that drops is what counts."""
    federation = federation_of(**FED_BACK)
    again, once = federation.sites(2)
    values = np.array([0.4, 10.3, -7.45]) / LIMIT
    for round in range(6):
        for _ in range(round % 3):
            again.encrypt({"w": values[::-1] * 3}, round=round)  # lost on the way
        assert (sent(federation, again, values, round) == sent(federation, once, values, round)).all()


def test_an_update_of_an_earlier_round_is_one_more():
    """A federation that begins anew with the same clients counts from 0 again; nothing is lost or sent twice."""
    federation = federation_of(**FED_BACK)
    site, values = federation.site(), np.array([0.3]) / LIMIT
    site.restore_carry(b"")  # it joins late
    assert sum(sent(federation, site, values, round) for round in (5, 6, 0, 1, 2, 3, 9, 10, 11, 12)) == 3


@pytest.mark.parametrize("fault", ["range", "backend", "disk"])
def test_a_failed_encryption_keeps_what_is_due(fault, monkeypatch, tmp_path):
    federation = federation_of(**FED_BACK)
    site, other = federation.sites(2)
    values = np.array([0.4, 10.3, -7.45]) / LIMIT
    for round in range(5):
        with monkeypatch.context() as patch:
            if fault == "range":
                with pytest.raises(RangeError):
                    site.encrypt({"w": np.array([9.0, 0.0, 0.0])}, round=round)
            elif fault == "backend":
                patch.setattr(site._encryption._backend, "cipher", lambda *_: SimpleNamespace(encrypt=refuse))
                with pytest.raises(BackendError):
                    site.encrypt({"w": values * 2}, round=round)
            else:
                with pytest.raises(OSError, match="no space"):
                    site._write(lambda header: FullDisk(), {"w": values * 2}, 1.0, round, None, None, None)
        assert (sent(federation, site, values, round) == sent(federation, other, values, round)).all()


def refuse(block, plain):
    raise BackendError("no")


class FullDisk:
    """Takes the head of an update, and no frame."""

    written = 0

    def write(self, data):
        self.written += 1
        if self.written > 1:
            raise OSError("no space")


def test_what_was_clipped_comes_back():
    """With feedback, a value beyond the bound is sent in parts, and counts as long as a part of it has to wait."""
    federation = federation_of(overflow="clip", **FED_BACK)
    site = federation.site()
    rounds = [[2.5, -2.5, 1.0], [0.0, 0.0, 0.5], [0.25, 0.0, 0.0], [0.0, 0.0, 0.0]]
    counts, found = [], []
    for round, values in enumerate(rounds):
        found.append(sent(federation, site, np.array(values), round))
        counts.append(site.clipped)
    assert counts == [2, 2, 0, 0]
    np.testing.assert_array_equal(found[0], [127, -127, 127])
    np.testing.assert_array_equal(found[1], [127, -127, 64])
    np.testing.assert_allclose(np.sum(found, axis=0), np.array([2.75, -2.5, 1.5]) * LIMIT, atol=0.5001)


def test_without_feedback_what_was_clipped_is_lost():
    federation = federation_of(overflow="clip")
    site = federation.site()
    found = [sent(federation, site, np.array([value]), round) for round, value in enumerate([2.5, 0.0])]
    assert np.ravel(found).tolist() == [127, 0]


def test_another_model_begins_with_nothing():
    federation = federation_of(**FED_BACK)
    site = federation.site()
    dropping = np.full(6, 0.45) / LIMIT
    assert not sent(federation, site, dropping, 0).any()
    assert not sent(federation, site, dropping[:5], 1).any()  # 0.9 would have become 1
    assert sent(federation, site, dropping[:5], 2).all()
    assert not sent(federation, site, dropping, 3).any()
    # A round that changed the model, encrypted again, changes it again.
    assert not sent(federation, site, dropping, 3).any()
    assert sent(federation, site, dropping, 4).all()


@pytest.mark.parametrize("name", ["v", "w"])
def test_another_model_of_equal_size_begins_with_nothing(name):
    """What one tensor dropped is not due to another one, nor to one of another shape."""
    federation = federation_of(**FED_BACK)
    site = federation.site()
    site.encrypt({"w": np.full((2, 3), 0.45 / LIMIT)}, round=0)
    update = site.encrypt({name: np.full((3, 2) if name == "w" else (2, 3), 0.45 / LIMIT)}, round=1)
    assert not np.rint(mean_with_zeros(federation, update)).any()


def test_a_restarted_site_begins_with_nothing():
    """Unless what it carried is restored: see test_carry.py."""
    federation = federation_of(**FED_BACK)
    values = np.array([0.45]) / LIMIT
    sites = [federation.site() for _ in range(4)]
    for site in sites:
        site.restore_carry(b"")
    assert [sent(federation, site, values, round)[0] for round, site in enumerate(sites)] == [0, 0, 0, 0]
    site = federation.site()
    assert [sent(federation, site, values, round)[0] for round in range(4)] == [0, 1, 0, 1]


def test_sites_carry_their_own():
    federation = federation_of(**FED_BACK)
    first, second = federation.sites(2)
    second.restore_carry(b"")
    assert sent(federation, first, [0.45 / LIMIT], 0) == 0
    assert sent(federation, second, [0.45 / LIMIT], 1) == 0
    assert sent(federation, first, [0.45 / LIMIT], 1) == 1


@variants
def test_the_weight_has_no_residual(variant):
    """Digits of the weight are whole numbers: they come back unchanged round after round."""
    federation = federation_of(variant, **FED_BACK)
    site, codec = federation.site(), federation.codec
    assert codec.head_values(1) == weight_digits(BITS) + 1
    for round in range(3):
        site.encrypt({"w": np.full(4, 0.3)}, 0.123, round)
        assert [residual.size for residual in site._encryption.feedback.carry.after] == [4]
    update = site.encrypt({"w": np.full(4, 0.3)}, 0.123, 3)
    other = federation.site("site-2")
    other.restore_carry(b"")
    partner = other.encrypt({"w": np.zeros(4)}, 1.0, 3)
    aggregator = federation.aggregator(3)
    for each in (update, partner):
        aggregator.add(each)
    mean = federation.site().decrypt(aggregator.finish())["w"]
    np.testing.assert_allclose(mean * 1.123 * LIMIT, np.rint(mean * 1.123 * LIMIT), atol=1e-6)


def test_clear_tensors_have_no_residual():
    """They are words of far more bits, and travel as they are."""
    federation = federation_of(encrypt={"exclude": ["clear"]}, **FED_BACK)
    sites, state = federation.sites(2), {"w": np.full(3, 0.3), "clear": np.array([0.1, -0.7])}
    for round in range(2):
        aggregator = federation.aggregator(round)
        for site in sites:
            aggregator.add(site.encrypt(state, 0.5, round))
        mean = sites[0].decrypt(aggregator.finish())
        np.testing.assert_allclose(mean["clear"], state["clear"], atol=1e-15)


def test_stochastic_rounding_with_feedback_draws_anew(monkeypatch):
    """What is dropped depends on the seed, and each round has its own."""
    seeds = iter(range(100))
    monkeypatch.setattr(integer_codec, "secrets", SimpleNamespace(randbits=lambda _: next(seeds)))
    federation = federation_of(rounding="stochastic", **FED_BACK)
    site, values = federation.site(), np.full(200, 5.5 / LIMIT)
    found = [sent(federation, site, values, round) for round in range(3)]
    expected = quantised(values, 1.0, 1.0, BITS, seed=0)
    np.testing.assert_array_equal(found[0], expected)
    assert not np.array_equal(found[1], found[0])
    assert np.abs(sum(found) - 16.5).max() <= 1 + 1e-4
