"""Backends of a scheme agree on all but speed: they exchange keys, words and whole rounds, in every direction."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from federation import CLARA, TINY, VARIANTS, federate, is_symmetric, libs_of, random_states

import secagg
from secagg.errors import ConfigError, MismatchError

CKKS = {
    "tiny": TINY,
    "clara": CLARA,
    "equal primes": {"poly_modulus_degree": 4096, "coeff_mod_bit_sizes": [36, 36, 34], "scale_bits": 33},
    "the ceiling": {"poly_modulus_degree": 4096, "coeff_mod_bit_sizes": [53, 53], "scale_bits": 38},
}
BGV = {
    "one data prime": {"poly_modulus_degree": 4096, "coeff_mod_bit_sizes": [53, 53], "plain_modulus_bits": 30},
    "planned": {"poly_modulus_degree": 4096, "coeff_mod_bit_sizes": [38, 38, 30], "plain_modulus_bits": 60},
}
PARAMS = {f"CKKS {name}": {**params, "scheme": "CKKS"} for name, params in CKKS.items()} | {
    f"BGV {name}": {**params, "scheme": "BGV", "value_bits": 8} for name, params in BGV.items()
}


def mates(scheme, seeded):
    """The backends that can take part in one federation."""
    return [lib for lib in libs_of(scheme) if is_symmetric(lib) or not seeded]


def choices(number):
    """Every choice of so many backends, wherever two or more can mix."""
    return [
        pytest.param(scheme, seeded, *chosen, id=f"{scheme}-{'seeded' if seeded else 'whole'}-{'-'.join(chosen)}")
        for scheme in ("CKKS", "BGV")
        for seeded in (False, True)
        if len(mates(scheme, seeded)) > 1
        for chosen in itertools.product(mates(scheme, seeded), repeat=number)
    ]


def mixed(scheme, seeded, maker, params, **aggregation):
    """A federation whose key `maker` made."""
    variant = next(variant for variant, its in VARIANTS.items() if its == (maker, scheme))
    return federate(variant, {**params, "seeded": seeded}, **({"max_clients": 4, "max_abs": 1.0} | aggregation))


#: Coarse params that serve seeded ciphertexts and those of a public key alike.
COARSE = {"CKKS": TINY, "BGV": {"value_bits": 8, **BGV["planned"]}}
FINE = {"CKKS": CLARA, "BGV": {"value_bits": 16, **BGV["planned"]}}


def test_the_backends_that_are_shipped():
    """A library that is missing is a failure, not a reason to skip."""
    found = secagg.available_backends()
    assert {"tenseal", "pyfhel", "seal", "flashe"} <= set(found)
    for name, info in found.items():
        assert info.available, f"{name}: {info.problem}"
        assert info.problem is None
        assert info.schemes
        assert info.version[0].isdigit()
        assert "the server together with any one site can read every update" in info.trust
    schemes = {"tenseal": ("CKKS",), "pyfhel": ("CKKS", "BGV"), "seal": ("CKKS", "BGV"), "flashe": ("FLASHE",)}
    assert {name: found[name].schemes for name in schemes} == schemes


@pytest.mark.parametrize(("scheme", "seeded", "maker", "encrypter", "decrypter"), choices(3))
def test_keys_and_words_pass_between_libraries(scheme, seeded, maker, encrypter, decrypter):
    """A key that one made, words that another encrypted, a mean that a third decrypts."""
    federation = mixed(scheme, seeded, maker, COARSE[scheme])
    states = random_states(2, {"w": (5000,)})
    aggregate = federation.using(encrypter).sum(states)
    federation.assert_mean(federation.using(decrypter).site().decrypt(aggregate), states)


@pytest.mark.parametrize(("scheme", "seeded", "maker"), choices(1))
def test_a_round_with_one_site_on_each_library(scheme, seeded, maker):
    """Each site decrypts the same mean, under params of a real training, whoever made the key."""
    libs = mates(scheme, seeded)
    federation = mixed(scheme, seeded, maker, FINE[scheme], max_clients=len(libs))
    states = random_states(len(libs), {"w": (5000,), "s": ()})
    weights = [1 / number for number in range(1, len(libs) + 1)]
    sites = [federation.using(lib).site(lib) for lib in libs]
    aggregate = federation.add(
        site.encrypt(state, weight) for site, state, weight in zip(sites, states, weights, strict=True)
    )
    assert aggregate.header.sites == tuple(libs)
    means = [site.decrypt(aggregate, like=states[0]) for site in sites]
    for mean in means:
        federation.assert_mean(mean, states, weights)
        np.testing.assert_allclose(mean["w"], means[0]["w"], rtol=0, atol=1e-7)  # one ciphertext: the noise is the same


@pytest.mark.parametrize("maker", mates("BGV", False))
def test_calibrations_of_several_libraries(maker):
    """Each site calibrates on its library, and reads on it what the sum says, whoever made the key."""
    libs = mates("BGV", False)
    federation = federate(f"{maker}-BGV/auto", {"value_bits": 8, "seeded": False}, max_clients=len(libs))
    states = random_states(len(libs), {"w": (3, 500), "s": ()})
    sites = [federation.using(lib).site(lib) for lib in libs]
    scales = federation.add(site.calibrate(state) for site, state in zip(sites, states, strict=True))
    aggregate = federation.add(
        site.encrypt(state, calibration=scales) for site, state in zip(sites, states, strict=True)
    )
    for site in sites:
        federation.assert_mean(site.decrypt(aggregate, like=states[0]), states)


@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
def test_all_libraries_choose_the_same_moduli(params):
    libs = libs_of(params["scheme"])
    keys = [mixed(params["scheme"], False, lib, params, max_clients=2).keys.server for lib in libs]
    assert len({(key.primes, key.plain_modulus) for key in keys}) == 1
    assert [prime.bit_length() for prime in keys[0].primes] == params["coeff_mod_bit_sizes"]
    assert keys[0].plain_modulus.bit_length() == params.get("plain_modulus_bits", 0)
    moduli = [*keys[0].primes, *([keys[0].plain_modulus] if params["scheme"] == "BGV" else [])]
    assert all(modulus % (2 * params["poly_modulus_degree"]) == 1 for modulus in moduli)
    assert len({key.fingerprint for key in keys}) == len(libs)


@pytest.mark.parametrize("complex_slots", [False, True])
def test_a_single_prime(ckks, complex_slots):
    """Sums need no special prime."""
    params = {"poly_modulus_degree": 1024, "coeff_mod_bit_sizes": [26], "scale_bits": 20, "seeded": False}
    federation = federate(ckks, params | {"complex_slots": complex_slots}, max_clients=2, max_abs=1.0)
    states = random_states(2, {"w": (1100,)})
    aggregate = federation.sum(states)
    for lib in ("tenseal", "pyfhel", "seal"):
        federation.assert_mean(federation.using(lib).site().decrypt(aggregate), states)


@pytest.mark.parametrize("scheme", ["CKKS", "BGV"])
def test_a_library_of_public_keys_takes_no_seeds(scheme):
    federation = mixed(scheme, True, "seal", COARSE[scheme])
    with pytest.raises(ConfigError, match="'pyfhel' encrypts under the public key.*set seeded: false for all sites"):
        federation.using("pyfhel").site()


@pytest.mark.parametrize("scheme", ["CKKS", "BGV"])
def test_sites_must_agree_on_seeds(scheme):
    """The same key serves both; the sum of both means nothing."""
    seeded, whole = mixed(scheme, True, "seal", COARSE[scheme]), mixed(scheme, False, "seal", COARSE[scheme])
    assert seeded.keys.server.params.of_key == whole.keys.server.params.of_key
    update = secagg.Client(whole.config, seeded.keys.client, "site-1").encrypt({"w": np.ones(3)})
    assert update.nbytes > 1.8 * seeded.site().encrypt({"w": np.ones(3)}).nbytes
    with pytest.raises(MismatchError, match="seeded False, expected True; .*set `seeded: false`"):
        seeded.aggregator().add(update)


def test_blocks_are_independent(lib):
    """A backend's buffers are used again: the words of a block do not depend on the one before."""
    federation = federate(lib)
    site, shapes = federation.site(), {"w": (federation.codec.block_values * 5 // 2,)}
    states = random_states(2, shapes, seed=1)
    updates = [site.encrypt(states[0]), federation.site("site-2").encrypt(states[1])]
    site.encrypt(random_states(1, shapes, seed=9)[0])
    federation.assert_mean(site.decrypt(federation.add(updates)), states)


def test_keys_are_fresh(lib):
    config = federate(lib).config
    one, other = secagg.generate_keys(config), secagg.generate_keys(config)
    assert one.server.fingerprint != other.server.fingerprint
    secrets = [keys.client.secret_material().secret for keys in (one, other)]
    assert not np.array_equal(*secrets) or not secrets[0].size  # FLASHE has none but the root
    assert len({one.client._root, other.client._root}) == 2
