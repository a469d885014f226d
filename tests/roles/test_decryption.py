"""What a site refuses to take for a mean, and how little it says when the sum makes no sense."""

from __future__ import annotations

import traceback

import numpy as np
import pytest
from container import Container, block_nbytes, fraction_bits
from federation import CLARA, LARGE, LATTICE, federate, other_keys, random_states

from secagg import Update
from secagg.errors import (
    CapacityError,
    DecryptionError,
    DigestError,
    FormatError,
    ImplausibleSumError,
    KeyMismatchError,
    LayoutError,
    MismatchError,
    PrecisionWarning,
    QuorumError,
)

ENCRYPT = {"exclude": ["c"]}


@pytest.fixture(scope="module")
def federation(lib):
    return federate(lib, encrypt=ENCRYPT)


@pytest.fixture(scope="module")
def states(federation):
    """Of three encrypted blocks and a clear one."""
    return random_states(3, {"w": (federation.codec.block_values * 5 // 2,), "c": (5,)})


@pytest.fixture(scope="module")
def blob(federation, states):
    return federation.sum(states).to_bytes()


# An aggregate that is not of this federation.

OTHERS = {
    "another key": (lambda f, s: other_keys(f).sum(s), KeyMismatchError, "is under key"),
    "an update": (
        lambda f, s: f.site().encrypt(s[0]),
        MismatchError,
        "is of kind 'update'; kind 'aggregate' is needed here",
    ),
    "other params": (
        lambda f, s: federate(f.variant, LARGE, encrypt=ENCRYPT).sum(s),
        MismatchError,
        "has other params",
    ),
    "another max_abs": (lambda f, s: f.but(max_abs=1.5).sum(s), MismatchError, "max_abs 1.5"),
    "another max_weight": (lambda f, s: f.but(max_weight=9).sum(s), MismatchError, "max_weight 9"),
    "another max_clients": (lambda f, s: f.but(max_clients=3).sum(s), MismatchError, "max_clients 3"),
    "another encrypted set": (
        lambda f, s: f.but(encrypt="all").sum(s),
        LayoutError,
        "another layout than the configuration makes it",
    ),
    "too few contributions": (lambda f, s: f.sum(s[:2]), QuorumError, "has 2 contributions, min_clients is 3"),
}


@pytest.mark.parametrize(("make", "error", "match"), OTHERS.values(), ids=OTHERS)
def test_an_aggregate_of_others(federation, states, make, error, match):
    site = federation.but(min_clients=3).site()
    with pytest.raises(error, match=match) as caught:
        site.decrypt(make(federation, states), like=states[0])
    assert caught.type is error


def test_more_contributions_than_planned(federation, states, blob):
    container = Container.read(blob)
    container.header["contributions"] = [[f"s{index}", f"{index:064x}"] for index in range(5)]
    with pytest.raises(CapacityError, match="5 contributions, the sum is planned for max_clients 4"):
        federation.site().decrypt(Update.from_bytes(container.to_bytes()))


def test_a_damaged_aggregate(federation, blob, tmp_path):
    head = len(Container.read(blob).head)
    for place in (head, head + 5000, len(blob) - 40, len(blob) - 1):
        damaged = bytearray(blob)
        damaged[place] ^= 1
        (tmp_path / "aggregate.secagg").write_bytes(damaged)
        with pytest.raises(DigestError):
            federation.site().decrypt(Update.from_bytes(bytes(damaged)))
        with Update.open(tmp_path / "aggregate.secagg") as aggregate, pytest.raises(DigestError):
            federation.site().decrypt(aggregate)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("lib", LATTICE)
def test_a_word_that_is_not_below_its_prime(lib):
    federation = federate(lib)
    container = Container.read(federation.sum(random_states(2, {"w": (9,)})).to_bytes())
    container.payloads[0] = container.payloads[0][:-100] + b"\xff" * 100
    with pytest.raises(FormatError, match="is not below its modulus"):
        federation.site().decrypt(Update.from_bytes(container.to_bytes()))


# Sums that are well-formed and wrong. Only the values can tell, and the error must not say how.


def other_ciphertext(federation, states, container):
    """Words of the same shape under a key that nobody here has, behind a header that claims the right one."""
    container.payloads = Container.read(other_keys(federation).sum(states).to_bytes()).payloads


def zeros(federation, states, container):
    container.payloads = [bytes(len(payload)) for payload in container.payloads]


def plaintext(federation, states, container):
    """Small numbers where ciphertext belongs: of the first block, half is a plaintext of ones or so, the rest zero."""
    half = block_nbytes(container.header["params"]) // 2
    container.payloads[0] = b"\x01" * half + bytes(len(container.payloads[0]) - half)


def noise_behind_the_weight(federation, states, container):
    """The first block, with the weight, is good; the last one is not."""
    payload, block = container.payloads[0], block_nbytes(container.header["params"])
    container.payloads[0] = payload[: 2 * block] + payload[: block // 2] + payload[-block // 2 :]


def blocks_swapped(federation, states, container):
    payload, block = container.payloads[0], block_nbytes(container.header["params"])
    container.payloads[0] = payload[block : 2 * block] + payload[:block] + payload[2 * block :]


def a_contribution_less(federation, states, container):
    """Three sites are in the sum, two are listed: weights are beyond what two can give, or a pad or mask stays on."""
    container.header["contributions"].pop()


def another_nonce(federation, states, container):
    """The masks of seeds and the pads come from the nonces: with another they stay on."""
    container.header["contributions"][1][1] = "0" * 64


def another_round(federation, states, container):
    """Pads belong to their round."""
    container.header["round"] += 1


def site_renamed(federation, states, container):
    container.header["contributions"][1][0] = "site-9"


def clear_value_too_large(federation, states, container):
    one = 1 << fraction_bits(container.header["aggregation"])
    words = np.frombuffer(container.payloads[1], "<i8").copy()
    words[2] = 4 * one  # a mean of 4/3, where max_abs is 1
    container.payloads[1] = words.tobytes()


def clear_value_smallest(federation, states, container):
    words = np.frombuffer(container.payloads[1], "<u8").copy()
    words[0] = 1 << 63
    container.payloads[1] = words.tobytes()


WRONG = [
    other_ciphertext,
    zeros,
    plaintext,
    noise_behind_the_weight,
    blocks_swapped,
    a_contribution_less,
    clear_value_too_large,
    clear_value_smallest,
]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("change", WRONG, ids=lambda change: change.__name__)
def test_a_wrong_sum(federation, states, blob, capfd, change):
    refuse(federation, states, blob, capfd, change)


@pytest.mark.usefixtures("kernels")
def test_a_wrong_nonce(federation, states, blob, capfd):
    """Nonces stand for pads of tags, whatever else they stand for."""
    refuse(federation, states, blob, capfd, another_nonce)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("change", [another_round, site_renamed], ids=lambda change: change.__name__)
def test_pads_of_another_round_or_site(capfd, change):
    federation = federate("flashe", encrypt=ENCRYPT)
    states = random_states(3, {"w": (50,), "c": (5,)})
    refuse(federation, states, federation.sum(states).to_bytes(), capfd, change)


def refuse(federation, states, blob, capfd, change):
    container = Container.read(blob)
    change(federation, states, container)
    with pytest.raises(DecryptionError) as caught:
        federation.site().decrypt(Update.from_bytes(container.to_bytes()))
    assert str(caught.value) == str(DecryptionError())
    # Nor does a chained native error say more.
    shown = "".join(traceback.format_exception(caught.value))
    assert "During handling" not in shown
    assert "direct cause" not in shown
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("kernels")
def test_a_wrong_sum_of_16_bits(ckks):
    """Noise far beyond what a half can hold is an error like any other, not a warning."""
    federation = federate(ckks, CLARA)
    state = {"h": np.ones(5000, np.float16), "f": np.ones(4, np.float32)}
    container = Container.read(federation.sum([state, state]).to_bytes())
    payload = container.payloads[0]
    container.payloads[0] = payload[: len(payload) // 2] + payload[: len(payload) // 4] + payload[-len(payload) // 4 :]
    with pytest.raises(DecryptionError):
        federation.site().decrypt(Update.from_bytes(container.to_bytes()))


@pytest.mark.parametrize("lib", LATTICE)
def test_what_a_library_refuses_is_the_same_error(lib):
    """A library may notice by itself that words are none; what it says stays inside."""
    federation = federate(lib)
    params = federation.config.params
    backend = federation.backend(params, federation.keys.client)
    count = 2 * len(params.data_bit_sizes) * params.poly_modulus_degree
    with pytest.raises(DecryptionError, match="the aggregate does not decrypt") as caught:
        backend.decrypt(np.full(count, 2**64 - 1, np.uint64))
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_weights_that_drown(lib):
    """Two sites whose weights are far below `max_weight`: noise or rounding is all there is, and no mean is made up.

    Where values are rounded, their sites say so, and the mean is as good as its steps are.
    """
    federation = federate(lib, LARGE, max_weight=1e9)
    state, weights = {"w": np.ones(300)}, [1.0, 1.0]
    if federation.exact:
        with pytest.warns(PrecisionWarning, match=r"rounding loses \d+ % of the energy of 'w'"):
            aggregate = federation.sum([state, state], weights)
        federation.assert_mean(federation.site().decrypt(aggregate), [state, state], weights)
        return
    with pytest.raises(ImplausibleSumError, match="far below aggregation.max_weight") as caught:
        federation.site().decrypt(federation.sum([state, state], weights))
    assert "server" not in str(caught.value)
