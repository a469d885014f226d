"""Backends agree on everything but speed: they exchange keys, words and whole rounds, in every direction."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from federation import CLARA, TINY, federate, random_states

import secagg

LIBS = sorted(secagg.available_backends())
PARAMS = {
    "tiny": TINY,
    "clara": CLARA,
    "equal primes": {"poly_modulus_degree": 4096, "coeff_mod_bit_sizes": [36, 36, 34], "scale_bits": 33},
    "the ceiling": {"poly_modulus_degree": 4096, "coeff_mod_bit_sizes": [53, 53], "scale_bits": 38},
}


def test_the_backends_that_are_shipped():
    """A library that is missing is a failure, not a reason to skip."""
    found = secagg.available_backends()
    assert {"tenseal", "pyfhel"} <= set(found)
    for name, info in found.items():
        assert info.available, f"{name}: {info.problem}"
        assert info.problem is None
        assert "CKKS" in info.schemes
        assert info.version[0].isdigit()
        assert "the server together with any one site can read every update" in info.trust


@pytest.mark.parametrize(("maker", "encrypter", "decrypter"), list(itertools.product(LIBS, repeat=3)))
def test_keys_and_words_pass_between_libraries(maker, encrypter, decrypter):
    """A key that one made, words that another encrypted, a mean that a third decrypts."""
    federation = federate(maker, CLARA)
    states = random_states(2, {"w": (5000,)})
    aggregate = federation.using(encrypter).sum(states)
    federation.assert_mean(federation.using(decrypter).site().decrypt(aggregate), states)


@pytest.mark.parametrize("maker", LIBS)
@pytest.mark.parametrize("server", LIBS)
def test_a_round_of_two_libraries(maker, server):
    """One site uses TenSEAL, the other Pyfhel, and each decrypts the same mean."""
    federation = federate(maker)
    states = random_states(2, {"w": (1500,)})
    sites = [federation.using(lib).site(lib) for lib in LIBS]
    aggregate = federation.using(server).add(site.encrypt(state) for site, state in zip(sites, states, strict=True))
    assert aggregate.header.sites == tuple(LIBS)
    means = [site.decrypt(aggregate, like=states[0]) for site in sites]
    for mean in means:
        federation.assert_mean(mean, states)
    np.testing.assert_allclose(means[0]["w"], means[1]["w"], atol=1e-6)  # one ciphertext: the noise is the same


@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
def test_all_libraries_choose_the_same_primes(params):
    keys = [federate(lib, params, max_clients=2, max_abs=1.0).keys.server for lib in LIBS]
    assert len({key.primes for key in keys}) == 1
    assert [prime.bit_length() for prime in keys[0].primes] == params["coeff_mod_bit_sizes"]
    assert all(prime % (2 * params["poly_modulus_degree"]) == 1 for prime in keys[0].primes)
    assert len({key.fingerprint for key in keys}) == len(LIBS)


def test_a_single_prime():
    """Pyfhel needs no special prime, TenSEAL does, and says so."""
    params = {"poly_modulus_degree": 1024, "coeff_mod_bit_sizes": [26], "scale_bits": 21}
    federation = federate("pyfhel", params, max_clients=2, max_abs=1.0)
    states = random_states(2, {"w": (600,)})
    federation.assert_mean(federation.site().decrypt(federation.sum(states)), states)
    with pytest.raises(secagg.errors.ConfigError, match="at least two primes"):
        federation.using("tenseal").site()
    with pytest.raises(secagg.errors.ConfigError, match="at least two primes"):
        secagg.generate_keys(federation.using("tenseal").config)


def test_blocks_are_independent(lib):
    """A backend's buffers are used again: the words of a block do not depend on the one before."""
    federation = federate(lib)
    site = federation.site()
    states = random_states(2, {"w": (3000,)}, seed=1)
    updates = [site.encrypt(states[0]), federation.site("site-2").encrypt(states[1])]
    site.encrypt(random_states(1, {"w": (3000,)}, seed=9)[0])
    federation.assert_mean(site.decrypt(federation.add(updates)), states)


def test_keys_are_fresh(lib):
    config = federate(lib).config
    one, other = secagg.generate_keys(config), secagg.generate_keys(config)
    assert one.server.fingerprint != other.server.fingerprint
    secrets = [keys.client.secret_material().secret for keys in (one, other)]
    assert not np.array_equal(*secrets)
