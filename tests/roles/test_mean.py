"""Promise 1: the result is the weighted mean of the sites that were added, to the error that the params explain."""

from __future__ import annotations

import numpy as np
import pytest
from container import Container, block_nbytes, block_values, rows
from federation import CLARA, MODES, PRECISE, TINY, VARIANTS, federate, random_states

import secagg
import secagg_ext

PARAMS = {
    "CKKS": {
        "tiny": TINY,
        "clara": CLARA,
        "whole": {**CLARA, "seeded": False},
        "complex": {**CLARA, "complex_slots": True},
        "one data prime": {"poly_modulus_degree": 4096, "coeff_mod_bit_sizes": [53, 53], "scale_bits": 38},
        "three data primes": {"poly_modulus_degree": 8192, "coeff_mod_bit_sizes": [40, 30, 30, 40], "scale_bits": 60},
    },
    "BGV": {
        "4 bits": {"value_bits": 4, "rounding": "nearest"},
        "16 bits": {"value_bits": 16},
        "24 bits": {"value_bits": 24, "seeded": False},
        "one data prime": {
            "value_bits": 11,
            "poly_modulus_degree": 4096,
            "coeff_mod_bit_sizes": [53, 53],
            "plain_modulus_bits": 30,
        },
        "three data primes": {
            "value_bits": 17,
            "poly_modulus_degree": 8192,
            "coeff_mod_bit_sizes": [40, 30, 30, 59],
            "plain_modulus_bits": 60,
        },
    },
    "FLASHE": {
        "4 bits": {"value_bits": 4},
        "11 bits": {"value_bits": 11, "rounding": "nearest"},
        "24 bits": {"value_bits": 24},
    },
}
#: Where scales are measured, bits can be planned, and what is dropped is carried unless somebody says otherwise.
MEASURED = {
    "planned": {},
    "3 bits, nothing carried": {"value_bits": 3, "rounding": "stochastic", "error_feedback": False},
    "24 bits": {"value_bits": 24},
}
CASES = [
    pytest.param(mode, params, id=f"{mode}-{name}")
    for mode, (variant, precision) in MODES.items()
    for name, params in (PARAMS[VARIANTS[variant][1]] if precision == "fixed" else MEASURED).items()
    if (variant, name) != ("tenseal", "complex")  # it fills real slots only
]


@pytest.mark.parametrize(("mode", "params"), CASES)
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 0.33337), (0.01234, 1.0, 0.5, 0.3)], ids=str)
@pytest.mark.usefixtures("kernels")
@pytest.mark.filterwarnings("ignore::secagg.errors.PrecisionWarning")  # a few bits, and nothing carried
def test_weighted_mean(mode, params, weights):
    """Of a model of two blocks or more, with a block's end inside a tensor, and one that is small."""
    federation = federate(mode, params, max_clients=4, max_abs=1.0 if params is TINY else 8.0)
    states = random_states(len(weights), {"w": (3, 5), "b": (federation.codec.block_values,), "s": ()})
    aggregate = federation.sum(states, weights)
    federation.assert_mean(federation.site().decrypt(aggregate, like=states[0]), states, weights)


def test_thirty_sites_with_their_numbers_of_examples(mode):
    federation = federate(mode, PRECISE, max_clients=30, max_abs=1.0, max_weight=1000)
    weights = [float(weight) for weight in np.linspace(1, 1000, 30).round()]
    states = random_states(30, {"w": (200,)})
    mean = federation.site().decrypt(federation.sum(states, weights), like=states[0])
    federation.assert_mean(mean, states, weights)
    assert federation.tolerance(weights, 1.0, "float32", 1.5 * 1000) < 1e-6


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("blocks", "more"), [(0, 0), (1, -1), (1, 0), (1, 1), (2, -1), (2, 0), (2, 1)])
def test_sizes_around_a_block(mode, blocks, more):
    """The weight and what else sites agree on take the first values of the first block."""
    federation = federate(mode)
    params, numbers = federation.config.params.to_dict(), federation.config.aggregation.to_dict()
    size = max(0, blocks * block_values(params, numbers) - federation.head_values() + more)
    states = random_states(2, {"w": (size,)})
    aggregate = federation.sum(states, [1.0, 0.5])
    assert aggregate.header.blocks("encrypted") == max(1, blocks + (more > 0))
    federation.assert_mean(federation.site().decrypt(aggregate), states, [1.0, 0.5])


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("mode", ["flashe/auto", "flashe/previous"])
def test_what_comes_before_values_is_longer_than_a_block(mode):
    """Bins of thousands of tensors, or counts of fewer, where a block has 4,096 values."""
    federation = federate(mode, {"value_bits": 24}, max_clients=1000)
    assert federation.codec.block_values == 4096
    count = 1 + 4096 // (federation.head_values(2) - federation.head_values(1))
    states = random_states(2, {f"t{number}": (1 + number % 2, 1) for number in range(count)})
    aggregate = federation.sum(states)
    assert aggregate.header.blocks("encrypted") >= 2
    federation.assert_mean(federation.site().decrypt(aggregate), states)


@pytest.mark.usefixtures("kernels")
def test_a_model_without_values(mode):
    federation = federate(mode)
    state = {"empty": np.zeros((0, 3), np.float32)}
    mean = federation.site().decrypt(federation.sum([state, state]), like=state)
    assert mean["empty"].shape == (0, 3)


@pytest.mark.usefixtures("kernels")
def test_more_than_a_frame(mode):
    """A tensor that lies across frames, between small ones."""
    federation = federate(mode)
    states = random_states(
        2, {"a": (7,), "b": (federation.codec.block_values * federation.frame_blocks,), "c": (1000,)}
    )
    aggregate = federation.sum(states)
    assert aggregate.header.frame_count == 2
    federation.assert_mean(federation.site().decrypt(aggregate), states)


def test_sums_at_the_edge_of_the_capacity(mode):
    """As many sites as are planned for, each with the largest values that it may have: nothing wraps."""
    federation = federate(mode, max_clients=15, max_abs=2.0)
    signs = np.sign(np.random.default_rng(0).standard_normal(2000))
    states = [{"w": 2.0 * signs}] * 15
    federation.assert_mean(federation.site().decrypt(federation.sum(states)), states)


def test_beyond_the_edge_of_the_capacity(ckks):
    with pytest.raises(secagg.errors.ConfigError, match="max_clients"):
        federate(ckks, max_clients=16, max_abs=2.0).site()


def test_the_order_of_adding_does_not_matter(mode):
    federation = federate(mode, encrypt={"include": ["w"]})
    updates = federation.encrypt(random_states(3, {"w": (9,), "c": (9,)}))
    one, other = federation.add(updates), federation.add(updates[::-1])
    assert Container.read(one.to_bytes()).payloads == Container.read(other.to_bytes()).payloads


def test_a_site_that_was_not_added_has_no_part(mode):
    """But for the scales, which it may have measured."""
    federation = federate(mode)
    states = random_states(3, {"w": (50,)})
    updates = federation.encrypt(states)
    federation.assert_mean(federation.site().decrypt(federation.add(updates[1:])), states[1:])


def test_decryption_keeps_no_state(mode):
    """A site that restarted, and one that joined late, decrypt the same."""
    federation = federate(mode)
    states = random_states(2, {"w": (50,)})
    aggregate = federation.sum(states)
    late = federation.site("late")
    np.testing.assert_array_equal(late.decrypt(aggregate)["w"], federation.site().decrypt(aggregate)["w"])
    np.testing.assert_array_equal(late.decrypt(aggregate)["w"], late.decrypt(aggregate)["w"])


def test_an_aggregate_lists_who_is_in_it(mode):
    federation = federate(mode)
    updates = federation.encrypt([{"w": np.ones(3)}] * 3)
    header = federation.add(updates).header
    assert header.kind == "aggregate"
    assert header.round == updates[0].header.round
    assert header.sites == ("site-1", "site-2", "site-3")
    assert [item.nonce for item in header.contributions] == [update.header.contributions[0].nonce for update in updates]
    assert header.key == federation.keys.server.fingerprint
    assert header.layout == updates[0].header.layout
    assert header.calibration == updates[0].header.calibration
    assert (header.calibration is None) == (federation.precision == "fixed")


def test_an_aggregate_is_of_the_round_of_its_updates(lib):
    federation = federate(lib)
    updates = [site.encrypt({"w": np.ones(3)}, round=4) for site in federation.sites(3)]
    assert federation.add(updates).header.round == 4


def test_the_server_does_not_see_weights(mode):
    """Of two updates that differ in their weight only, all that is in the clear is equal but for site and nonce."""
    federation = federate(mode, max_weight=1000)
    one, other = (
        Container.read(update.to_bytes()).header
        for update in federation.encrypt([{"w": np.ones(5)}] * 2, (100.0, 777.0))
    )
    assert one.pop("contributions") != other.pop("contributions")
    assert one == other


def test_encrypting_twice_draws_everything_anew(mode):
    federation = federate(mode)
    calibrations = [federation.site().calibrate] if federation.precision == "auto" else []
    scales = None
    if calibrations:
        scales = federation.add(site.calibrate({"w": np.ones(5)}) for site in federation.sites(2))
    site = federation.site()
    for make in (*calibrations, lambda state: site.encrypt(state, calibration=scales)):
        one, other = (make({"w": np.ones(5)}) for _ in range(2))
        assert one.header.contributions[0].nonce != other.header.contributions[0].nonce
        words = [np.frombuffer(Container.read(update.to_bytes()).payloads[0], np.uint8) for update in (one, other)]
        assert np.mean(words[0] == words[1]) < 0.02  # one byte in 256 is equal by chance


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_ciphertexts_look_like_noise(mode, value):
    """Every byte of an update of a constant model comes about as often as any other."""
    federation = federate(mode, max_clients=2)
    update = federation.encrypt([{"w": np.full(20_000, value)}] * 2)[0]
    payload = Container.read(update.to_bytes()).payloads[0]
    counts = np.bincount(np.frombuffer(payload, np.uint8), minlength=256)
    expected = len(payload) / 256
    # Top bits of words below a prime are not quite even, by less than 2**-10; chance alone stays within 7 deviations.
    assert np.abs(counts - expected).max() < 7 * np.sqrt(expected) + expected * 2**-10


def test_clear_bytes_hold_no_encrypted_tensor(lib):
    federation = federate(lib, encrypt={"include": ["secret"]})
    state = {"secret": np.full(64, 0.734, np.float32), "open": np.full(64, 0.5, np.float32)}
    blob = federation.site().encrypt(state).to_bytes()
    header, payloads = Container.read(blob).header, Container.read(blob).payloads
    places = 62 - 2  # max_clients 4, max_abs 1
    in_clear = np.frombuffer(payloads[1], "<i8")
    assert [spec[0] for spec in header["layout"] if spec[3] == "clear"] == [["open"]]
    np.testing.assert_array_equal(in_clear, [round(0.5 * 2**places)] * 64 + [0] * (4096 - 64))
    assert state["secret"].tobytes()[:8] not in blob


def test_both_kernels_add_alike(lib, kernels):
    """Whatever the implementation, a sum is the sum of the words modulo their moduli, in Python's own integers."""
    federation = federate(lib)
    updates = [site.encrypt({"w": np.ones(3)}) for site in federation.sites(3)]
    params = federation.config.params.to_dict()
    total, *summands = (
        rows(Container.read(update.to_bytes()).payloads[0][: block_nbytes(params)], params)
        for update in (federation.add(updates), *updates)
    )
    primes = federation.keys.server.primes
    data = primes[:-1] or primes or (2**64,)
    moduli = data * (len(total) // len(data))
    assert total == [
        [sum(words) % modulus for words in zip(*row, strict=True)]
        for modulus, *row in zip(moduli, *summands, strict=True)
    ]


def test_the_core_calls_every_kernel_where_it_can_be_replaced(monkeypatch):
    """Else the fixture `kernels` would change nothing."""
    called = set()

    def record(name, kernel):
        def recorded(*args):
            called.add(name)
            return kernel(*args)

        return recorded

    names = {name for name in secagg_ext.__all__ if name != "IMPLEMENTATION"}
    for name in names:
        monkeypatch.setattr(secagg_ext, name, record(name, getattr(secagg_ext, name)))
    for mode in MODES:
        federation = federate(mode)
        federation.site().decrypt(federation.sum([{"w": np.ones(3)}] * 2))
    assert called == names
