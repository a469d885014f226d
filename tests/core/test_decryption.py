"""What a site refuses to take for a mean, and how little it says when the sum makes no sense."""

from __future__ import annotations

import traceback

import numpy as np
import pytest
from container import Container, fraction_bits
from federation import CLARA, TINY_AGGREGATION, federate, other_keys, random_states

import secagg
from secagg import Update
from secagg.errors import (
    CapacityError,
    DecryptionError,
    DigestError,
    FormatError,
    KeyMismatchError,
    LayoutError,
    MismatchError,
    QuorumError,
)

ENCRYPT = {"exclude": ["c"]}
SHAPES = {"w": (2500,), "c": (5,)}


@pytest.fixture(scope="module")
def federation(lib):
    return federate(lib, encrypt=ENCRYPT)


@pytest.fixture(scope="module")
def states():
    return random_states(3, SHAPES)


@pytest.fixture(scope="module")
def blob(federation, states):
    return federation.sum(states).to_bytes()


# An aggregate that is not of this federation.

OTHERS = {
    "another key": (lambda f, s: other_keys(f).sum(s), KeyMismatchError, "is under key"),
    "an update": (lambda f, s: f.site().encrypt(s[0]), MismatchError, "is an update; an aggregate is needed here"),
    "other params": (lambda f, s: federate(f.config.lib, CLARA, encrypt=ENCRYPT).sum(s), MismatchError, "has params"),
    "another max_abs": (lambda f, s: f.but(max_abs=1.5).sum(s), MismatchError, "max_abs 1.5"),
    "another max_weight": (lambda f, s: f.but(max_weight=9).sum(s), MismatchError, "max_weight 9"),
    "another max_clients": (lambda f, s: f.but(max_clients=3).sum(s), MismatchError, "max_clients 3"),
    "another encrypted set": (lambda f, s: f.but(encrypt="all").sum(s), LayoutError, "another set of tensors"),
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
def test_a_word_that_is_not_below_its_prime(federation, blob):
    container = Container.read(blob)
    container.payloads[0] = container.payloads[0][:-100] + b"\xff" * 100
    with pytest.raises(FormatError, match="is not below its modulus"):
        federation.site().decrypt(Update.from_bytes(container.to_bytes()))


# Sums that are well-formed and wrong. Only the values can tell, and the error must not say how.


def other_ciphertext(federation, container):
    """Words of the same shape under a key that nobody here has, behind a header that claims the right one."""
    other = Container.read(other_keys(federation).sum(random_states(3, SHAPES)).to_bytes())
    container.payloads = other.payloads


def zeros(federation, container):
    container.payloads = [bytes(len(payload)) for payload in container.payloads]


def plaintext(federation, container):
    """Small numbers where ciphertext belongs: c0 holds a plaintext of ones or so, c1 nothing."""
    container.payloads[0] = b"\x01" * 6912 + bytes(len(container.payloads[0]) - 6912)


def noise_behind_the_weight(federation, container):
    """The first block, with the weight, is good; the last one is not."""
    payload = container.payloads[0]
    container.payloads[0] = payload[: 2 * 13_824] + payload[:6912] + payload[-6912:]


def blocks_swapped(federation, container):
    payload = container.payloads[0]
    container.payloads[0] = payload[13_824 : 2 * 13_824] + payload[:13_824] + payload[2 * 13_824 :]


def a_contribution_less(federation, container):
    """Three sites are in the sum, two are listed: the sum of weights is beyond what two can give."""
    container.header["contributions"].pop()


def clear_value_too_large(federation, container):
    one = 1 << fraction_bits(TINY_AGGREGATION)
    words = np.frombuffer(container.payloads[1], "<i8").copy()
    words[2] = 4 * one  # a mean of 4/3, where max_abs is 1
    container.payloads[1] = words.tobytes()


def clear_value_smallest(federation, container):
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
def test_a_wrong_sum(federation, blob, capfd, change):
    container = Container.read(blob)
    change(federation, container)
    with pytest.raises(DecryptionError) as caught:
        federation.site().decrypt(Update.from_bytes(container.to_bytes()))
    assert str(caught.value) == str(DecryptionError())
    # Nor does a chained native error say more.
    shown = "".join(traceback.format_exception(caught.value))
    assert "During handling" not in shown
    assert "direct cause" not in shown
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("kernels")
def test_a_wrong_sum_of_16_bits(lib):
    """Noise far beyond what a half can hold is an error like any other, not a warning."""
    federation = federate(lib, CLARA)
    state = {"h": np.ones(5000, np.float16), "f": np.ones(4, np.float32)}
    container = Container.read(federation.sum([state, state]).to_bytes())
    payload = container.payloads[0]
    container.payloads[0] = payload[: len(payload) // 2] + payload[: len(payload) // 4] + payload[-len(payload) // 4 :]
    with pytest.raises(DecryptionError):
        federation.site().decrypt(Update.from_bytes(container.to_bytes()))


def test_what_a_library_refuses_is_the_same_error(lib, federation):
    """A library may notice by itself that words are none; what it says stays inside."""
    params = federation.config.params
    backend = secagg.backends.registry.load_backend(lib)(params, federation.keys.client)
    with pytest.raises(DecryptionError, match="the aggregate does not decrypt") as caught:
        backend.decrypt(np.full(2 * params.poly_modulus_degree, 2**64 - 1, np.uint64))
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_weights_that_drown_in_noise(lib):
    """Two sites whose weights are far below `max_weight`: there is no mean to be had, and none is made up."""
    federation = federate(lib, CLARA, max_weight=1e9)
    state = {"w": np.ones(3)}
    with pytest.raises(DecryptionError, match="max_weight is far above the weights"):
        federation.site().decrypt(federation.sum([state, state], [1, 1]))
