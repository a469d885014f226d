"""How far measured scales carry: rounds of heavy-tailed updates against their true means, through whatever happens.

The bounds are those of the study that the design rests on; docs/precision.md has them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from federation import Federation, federate
from rounds_of_updates import SHAPES, Rounds, Simulation, State, nmse, scaled, training, true_mean

from secagg import Aggregator, Client, Update
from secagg.errors import PrecisionWarning
from secagg.site import GlobalModel

ROUNDS = 12
JUMP = 6
WEIGHTS = [17.0, 5.0, 40.0, 120.0, 33.0]
UNEVEN = [5.0, 500.0, 20.0, 33.0, 77.0, 250.0, 410.0, 9.0, 130.0, 60.0]

#: NMSE of 8 bits with feedback in a round of which nothing special is to be said.
USUAL = 2e-3


@pytest.fixture(scope="module")
def rounds() -> list[list[State]]:
    return training(len(WEIGHTS), ROUNDS)


def errors_of(rounds: Sequence[Sequence[State]], weights: Sequence[float] = WEIGHTS, **params) -> list[float]:
    return Rounds.of(weights, **{"value_bits": 8} | params).errors(rounds)


def lost(found: Sequence[State], sent: Sequence[Sequence[State]], weights: Sequence[float]) -> float:
    """What is missing of all rounds together, over the energy of all of them."""
    truths = [true_mean(states, weights) for states in sent]
    return nmse(
        {name: sum(np.asarray(mean[name], np.float64) for mean in found) for name in found[0]},
        {name: sum(truth[name] for truth in truths) for name in truths[0]},
    )


# As good as the design is.


@pytest.mark.parametrize(("bits", "study"), [(6, 2.5e-2), (8, 2e-3), (12, 6e-6)])
def test_errors_are_those_of_a_simulation(bits, study, rounds):
    errors, expected = errors_of(rounds, value_bits=bits), Simulation(bits, WEIGHTS).errors(rounds)
    assert max(errors) <= study
    assert max(np.divide(errors, expected)) <= 1.01


@pytest.mark.parametrize(("bits", "study"), [(6, 2e-2), (8, 1e-3), (12, 6e-6)])
def test_weights_that_differ_a_hundredfold(bits, study):
    rounds = training(len(UNEVEN), ROUNDS, seed=2)
    errors, expected = errors_of(rounds, UNEVEN, value_bits=bits), Simulation(bits, UNEVEN).errors(rounds)
    assert max(errors) <= study
    assert max(np.divide(errors, expected)) <= 1.01


@pytest.mark.parametrize(("bits", "worst"), [(3, 4.0), (24, 1e-12)])
def test_the_fewest_and_the_most_bits(bits, worst, rounds):
    """Means are float32, which shows beside 24 bits. Of 3 bits, only what rounds have together is of use."""
    errors, expected = errors_of(rounds, value_bits=bits), Simulation(bits, WEIGHTS).errors(rounds)
    assert max(errors) <= worst
    assert max(np.divide(errors, expected)) <= 1.1


@pytest.mark.parametrize("bits", [3, 6])
def test_coarse_rounds_lose_nothing_together(bits, rounds):
    """With feedback, all that is missing after the last round is what that one has dropped."""
    run = Rounds.of(WEIGHTS, value_bits=bits)
    found = [run.run(states) for states in rounds]
    assert lost(found, rounds, WEIGHTS) < min(Simulation(bits, WEIGHTS).errors(rounds)) / ROUNDS


def test_nothing_is_configured_but_backend_and_sites(rounds):
    run = Rounds.of(WEIGHTS)
    assert run.federation.config.params.value_bits >= 6
    assert max(run.errors(rounds)) <= 2.5e-2


@pytest.mark.parametrize("variant", ["seal-BGV", "pyfhel-BGV"])
def test_bgv_sums_the_same_integers(variant, rounds):
    run, other = Rounds.of(WEIGHTS, variant, value_bits=8), Rounds.of(WEIGHTS, value_bits=8)
    for states in rounds[:4]:
        mean, same = run.run(states), other.run(states)
        for name in SHAPES:
            np.testing.assert_array_equal(mean[name], same[name])


def test_stochastic_rounding_is_at_most_twice_as_bad(rounds):
    """With feedback, that is; nearest is the default."""
    errors = errors_of(rounds, rounding="stochastic")
    assert max(errors) <= 2 * USUAL
    assert 1.5 < np.mean(np.divide(errors, Simulation(8, WEIGHTS).errors(rounds))) < 2.5


def test_without_feedback_a_round_is_better_and_their_sum_is_worse(rounds):
    """What is rounded away does not come back, as the light sites are told; that it is less in a round helps nobody."""
    run = Rounds.of(WEIGHTS, value_bits=8, error_feedback=False)
    with pytest.warns(PrecisionWarning, match="rounding loses .* of the energy of 'conv2.weight'"):
        found = [run.run(rounds[0])]
    found += [run.run(states) for states in rounds[1:]]
    errors = [nmse(mean, true_mean(states, WEIGHTS)) for mean, states in zip(found, rounds, strict=True)]
    assert max(errors) <= USUAL
    assert max(np.divide(errors, Simulation(8, WEIGHTS, feedback=False).errors(rounds))) <= 1.01
    fed_back = Rounds.of(WEIGHTS, value_bits=8)
    assert lost(found, rounds, WEIGHTS) > 2 * lost([fed_back.run(states) for states in rounds], rounds, WEIGHTS)


@pytest.mark.parametrize("factor", [1.0, 1e3, 1e6])
@pytest.mark.parametrize("bits", [6, 8])
def test_a_generous_max_weight_costs_nothing(factor, bits, rounds):
    errors = errors_of(rounds[:5], value_bits=bits, max_weight=max(WEIGHTS) * factor)
    np.testing.assert_allclose(errors, errors_of(rounds[:5], value_bits=bits), rtol=0.01)


@pytest.mark.parametrize("unit", [2.0**-22, 2.0**-7, 2.0**33])
def test_weights_in_any_unit(unit, rounds):
    """Epochs, examples, voxels: steps follow them."""
    errors = errors_of(rounds[:4], [weight * unit for weight in WEIGHTS])
    np.testing.assert_allclose(errors, errors_of(rounds[:4]), rtol=1e-3)


# What does not stay as it was.


def jumped(rounds: Sequence[Sequence[State]], back: bool) -> list[list[State]]:
    """Updates that are ten times as large in one round, or from one on."""
    large = [JUMP] if back else range(JUMP, len(rounds))
    return [[scaled(state, 10) if n in large else state for state in states] for n, states in enumerate(rounds)]


@pytest.mark.parametrize("back", [False, True])
def test_a_jump_is_measured_in_its_round(back, rounds):
    """What it drops is large beside the next round, if that is small again: there the error is 8e-2 once."""
    errors = errors_of(jumped(rounds, back))
    assert errors[JUMP] <= 1e-3
    assert (errors.pop(JUMP + 1) <= 8e-2) if back else True
    assert max(errors) <= USUAL


def test_a_jump_under_scales_of_the_round_before(rounds):
    """It is clipped, and paid back: two rounds of about 1e-1."""
    errors = errors_of(jumped(rounds, False), precision="previous")
    assert 1e-2 < errors[JUMP] <= 0.1
    assert errors[JUMP + 1] <= 0.1
    assert max(errors[JUMP + 2 :]) <= 1e-2


@pytest.mark.parametrize("precision", ["auto", "previous"])
def test_a_jump_and_back_loses_nothing(precision, rounds):
    run, changed = Rounds.of(WEIGHTS, value_bits=8, precision=precision), jumped(rounds, True)
    found = [run.run(states) for states in changed]
    first = int(precision == "previous")  # its round 0 sends nothing
    assert lost(found[first:], changed[first:], WEIGHTS) <= 1e-4


def test_a_tensor_that_wakes(rounds):
    """It was zero at all sites for rounds, and its scale was that of others."""
    name = "conv2.weight"
    changed = [
        [state | ({name: np.zeros_like(state[name])} if n < JUMP else {}) for state in states]
        for n, states in enumerate(rounds)
    ]
    run, errors = Rounds.of(WEIGHTS, value_bits=8), []
    for n, states in enumerate(changed):
        mean = run.run(states)
        if n < JUMP:
            assert not mean[name].any()
        else:
            errors.append(nmse(mean, true_mean(states, WEIGHTS), [name]))
    assert errors[0] <= 6e-4
    assert max(errors) <= USUAL


@pytest.mark.parametrize("bits", [8, 12])
def test_a_site_that_is_a_hundred_times_too_large_for_a_round(bits, rounds):
    """Its step is everybody's, and what that drops is in the next round; then it is over."""
    changed = [list(states) for states in rounds]
    changed[JUMP][2] = scaled(changed[JUMP][2], 100)
    errors = errors_of(changed, value_bits=bits)
    assert errors[JUMP] <= 1e-3
    assert 1e-3 / 4 ** (bits - 8) < errors.pop(JUMP + 1) <= 1
    assert max(errors) <= 2e-3


def test_an_update_of_zeros(rounds):
    run = Rounds.of(WEIGHTS, value_bits=8)
    zeros = [scaled(state, 0) for state in rounds[0]]
    for states in (zeros, rounds[0], zeros, zeros):
        mean = run.run(states)
    energies = [
        sum(float(np.sum(value.astype(np.float64) ** 2)) for value in state.values()) for state in (mean, rounds[0][0])
    ]
    assert 0 < energies[0] <= 1e-6 * energies[1]  # what was dropped has been sent, and what that dropped
    assert not any(np.asarray(value).any() for value in Rounds.of(WEIGHTS, value_bits=8).run(zeros).values())


def test_a_site_without_anything_to_say(rounds):
    """Zeros of one site are in no bin, and count in the mean."""
    changed = [[scaled(states[0], 0), *states[1:]] for states in rounds]
    assert max(errors_of(changed)) <= USUAL


# Sites that come, miss something, or start again.


def test_a_latecomer(rounds):
    run = Rounds.of(WEIGHTS, value_bits=8)
    early, every = range(4), range(5)
    for n, states in enumerate(rounds):
        here = early if n < JUMP else every
        if n == JUMP:
            run.sites[4].restore_carry(b"")
        run.calibrate(states, here)
        mean = run.exchange(states, here)
        assert nmse(mean, true_mean([states[i] for i in here], [WEIGHTS[i] for i in here])) <= USUAL


def test_a_site_that_has_missed_the_calibration(rounds):
    """It takes part: what is beyond the scales of the others is clipped, counted, and sent in the next rounds."""
    run = Rounds.of(WEIGHTS, value_bits=8)
    changed = [[*states[:3], scaled(states[3], 6 if n == JUMP else 1), states[4]] for n, states in enumerate(rounds)]
    found, clipped = [], []
    for n, states in enumerate(changed):
        run.calibrate(states, [0, 1, 2, 4] if n == JUMP else None)
        found.append(run.exchange(states))
        clipped.append(run.sites[3].clipped)
    assert clipped[JUMP] > 1000
    assert not sum(clipped[:JUMP] + clipped[JUMP + 1 :])
    assert run.sites[0].clipped == 0
    errors = [nmse(mean, true_mean(states, WEIGHTS)) for mean, states in zip(found, changed, strict=True)]
    assert max(errors[:JUMP] + errors[JUMP + 3 :]) <= USUAL
    assert errors[JUMP + 2] <= 8e-2  # as after a jump
    assert lost(found, changed, WEIGHTS) <= 1e-4
    assert lost(found[: JUMP + 1], changed[: JUMP + 1], WEIGHTS) > 1e-3  # it was due, and is paid back


def test_without_feedback_what_a_missed_calibration_clips_is_lost(rounds):
    run = Rounds.of(WEIGHTS, value_bits=12, error_feedback=False)
    states = [*rounds[0][:3], scaled(rounds[0][3], 6), rounds[0][4]]
    run.calibrate(states, [0, 1, 2, 4])
    found = [run.exchange(states)]
    assert run.sites[3].clipped == sum(tensor.clipped for tensor in run.sites[3].report.tensors) > 1000
    zeros = [scaled(state, 0) for state in states]
    found += [run.run(zeros) for _ in range(3)]
    assert not any(value.any() for mean in found[1:] for value in mean.values())
    assert lost(found, [states, zeros, zeros, zeros], WEIGHTS) > 1e-2


def test_a_restart_between_calibration_and_upload(rounds):
    """A fresh client, told what there was to carry, trains again, and a little differently: nobody notices."""
    run = Rounds.of(WEIGHTS, value_bits=8)
    rng = np.random.default_rng(5)
    for n, states in enumerate(rounds):
        carry = run.sites[2].carry()
        run.calibrate(states)
        assert run.sites[2].carry() == carry  # it only measures
        if n == JUMP:
            again = {
                name: np.asarray(value * rng.uniform(0.95, 1.05, value.shape), np.float32)
                for name, value in states[2].items()
            }
            states = [*states[:2], again, *states[3:]]
            settled = run.sites[2]
            run.sites[2] = run.federation.site(settled.name)
            run.sites[2].restore_carry(carry)
            settled.encrypt(again, WEIGHTS[2], n, base=run.base, calibration=run.scales)
        error = nmse(run.exchange(states), true_mean(states, WEIGHTS))
        assert error <= USUAL
        if n == JUMP:
            assert run.sites[2].carry() == settled.carry()


def test_a_calibration_is_repeated_after_a_restart(rounds):
    """The same round calibrated again, by another client with the same carry, makes the same scales."""
    run = Rounds.of(WEIGHTS, value_bits=8)
    run.run(rounds[0])
    fresh = [restarted(run, site) for site in run.sites]
    run.calibrate(rounds[1])
    mean = run.exchange(rounds[1])
    twin = Rounds.of(WEIGHTS, value_bits=8)
    twin.sites, twin.round, twin.base = fresh, 1, bytes(32)
    twin.calibrate(rounds[1])
    for name, value in twin.exchange(rounds[1]).items():
        np.testing.assert_array_equal(value, mean[name])


def restarted(run: Rounds, site: Client) -> Client:
    fresh = run.federation.site(site.name)
    fresh.restore_carry(site.carry())
    return fresh


# Variances.


@pytest.mark.parametrize("precision", ["auto", "previous"])
@pytest.mark.parametrize("bits", [4, 6, 8])
def test_variances_never_go_below_zero(precision, bits):
    """A BatchNorm whose variances fall from 1 to 1e-5 in a round, beside kernels: the floor at 0 is never needed.

    They are small tensors, of 20 bits; of `bits` alone, a step would be larger than they are.
    """
    rng, weights = np.random.default_rng(3), [5.0, 17.0, 40.0]
    federation = federate("flashe", {"value_bits": bits}, max_clients=3, precision=precision)
    first = {
        "conv.weight": rng.normal(size=(8, 8, 3, 3)).astype(np.float32),
        "bn.running_mean": np.zeros(8, np.float32),
        "bn.running_var": np.ones(8, np.float32),
    }
    models = [GlobalModel(site, first) for site in federation.sites(3)]
    for n in range(ROUNDS):
        variances = 1e-5 * rng.uniform(0.5, 2, (3, 8))
        locals_ = [trained(model.state, variance, rng) for model, variance in zip(models, variances, strict=True)]
        given, scales = list(zip(models, locals_, weights, strict=True)), None
        if precision == "auto":
            scales = summed(federation, n, [model.calibrate(*both) for model, *both in given], "calibration")
        aggregate = summed(federation, n, [model.encrypt(*both, scales) for model, *both in given])
        for model in models:
            assert model.apply(aggregate)
        found = models[0].state["bn.running_var"]
        if precision == "previous" and n == 0:
            np.testing.assert_array_equal(found, first["bn.running_var"])
            continue
        assert (found > 0).all()
        if n > int(precision == "previous"):
            assert np.abs(found / np.average(variances, axis=0, weights=weights) - 1).max() < 0.1


def summed(federation: Federation, round: int, updates: Sequence[Update], kind: str = "update") -> Update:
    aggregator = Aggregator(federation.config, federation.keys.server, round, kind=kind)
    for update in updates:
        aggregator.add(update)
    return aggregator.finish()


def trained(state: State, variance: np.ndarray, rng: np.random.Generator) -> State:
    return {
        "conv.weight": state["conv.weight"] + rng.normal(0, 1e-3, (8, 8, 3, 3)).astype(np.float32),
        "bn.running_mean": rng.normal(0, 1e-2, 8).astype(np.float32),
        "bn.running_var": variance.astype(np.float32),
    }
