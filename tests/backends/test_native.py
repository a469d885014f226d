"""Each HE library held against what is assumed of it: its own addition, its noise, its keys, its silence."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tenseal_format
from federation import CLARA, LARGE, TINY, federate, is_symmetric

import secagg
from secagg.backends import seal_format
from secagg.backends.registry import load_backend
from secagg.scheme.noise import ERROR_VARIANCE
from secagg.scheme.ring import Ring

PARAMS = {
    "tiny": TINY,
    "clara": CLARA,
    "three data primes": {"poly_modulus_degree": 8192, "coeff_mod_bit_sizes": [40, 30, 30, 40], "scale_bits": 35},
}


def add_here(ring, words):
    """The sum as the aggregator makes it: packed, added, unpacked."""
    total = np.zeros(ring.block_nbytes, np.uint8)
    for one in words:
        packed = np.empty(ring.block_nbytes, np.uint8)
        ring.pack(one, packed)
        ring.check(packed)
        ring.add(total, packed)
    out = np.empty(ring.block_size, np.uint64)
    ring.unpack(total, out)
    return out


def encrypt_blocks(backend, params, count=5):
    rng = np.random.default_rng(3)
    return [backend.encrypt(rng.uniform(-1, 1, params.slot_count)).copy() for _ in range(count)]


def add_in_tenseal(params, key, words):
    """TenSEAL's `add_` on vectors rebuilt from words."""
    import tenseal
    import zstandard

    material = key.secret_material()
    minor = 3
    scale = 2.0**params.scale_bits
    context = tenseal.context_from(
        tenseal_format.pack_context(
            tenseal_format.pack_parms(params, material.primes, minor),
            seal_format.pack_secret_key(params, material, minor),
            scale,
        )
    )
    prefix = seal_format.pack_ciphertext_prefix(params, material.primes, minor)

    def vector(one):
        blob = tenseal_format.pack_vector_prefix(params.slot_count, len(prefix) + one.nbytes)
        return tenseal.ckks_vector_from(
            context, blob + prefix + one.tobytes() + tenseal_format.pack_vector_suffix(scale)
        )

    total = vector(words[0])
    for one in words[1:]:
        total.add_(vector(one))
    ciphertext = bytes(tenseal_format.vector_ciphertext(total.serialize()))
    payload = zstandard.ZstdDecompressor().decompressobj().decompress(ciphertext[seal_format.HEADER_NBYTES :])
    return np.frombuffer(payload, np.uint64, offset=seal_format.CIPHERTEXT_PREFIX_NBYTES)


def add_in_pyfhel(params, key, words):
    """Pyfhel's `+` on ciphertexts rebuilt from words."""
    from Pyfhel import PyCtxt, Pyfhel

    primes = key.server.primes
    native = Pyfhel()
    native.contextGen("CKKS", n=params.poly_modulus_degree, scale=2.0**params.scale_bits, qi=list(primes))
    prefix = seal_format.pack_ciphertext_prefix(params, primes, 1)
    total = PyCtxt(pyfhel=native, bytestring=prefix + words[0].tobytes(), scheme="ckks")
    for one in words[1:]:
        total = total + PyCtxt(pyfhel=native, bytestring=prefix + one.tobytes(), scheme="ckks")
    return np.frombuffer(total.to_bytes("none"), np.uint64, offset=len(prefix))


@pytest.mark.usefixtures("kernels")
@pytest.mark.filterwarnings("ignore:<Pyfhel Warning> qi_sizes:UserWarning")
@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
@pytest.mark.parametrize("addition", [add_in_tenseal, add_in_pyfhel])
def test_words_add_as_the_library_adds(ckks, addition, params):
    """Word for word, whichever library encrypted."""
    federation = federate(ckks, params | {"seeded": False}, max_clients=5, max_abs=1.0)
    params, key = federation.config.params, federation.keys.client
    words = encrypt_blocks(load_backend(ckks)(params, key), params)
    ring = Ring.of_update(params, key.server.primes)
    np.testing.assert_array_equal(add_here(ring, words), addition(params, key, words))


@pytest.mark.parametrize("params", [TINY, CLARA], ids=["tiny", "clara"])
def test_noise_of_a_fresh_ciphertext(ckks, params):
    """Symmetric encryption has the noise that public-key encryption does not reach."""
    federation = federate(ckks, params, max_clients=2, max_abs=1.0)
    params = federation.config.params
    backend = load_backend(ckks)(params, federation.keys.client)
    noise = np.std([backend.decrypt(backend.encrypt(np.zeros(params.slot_count))) for _ in range(4)])
    ternary = 2 * params.poly_modulus_degree / 3
    symmetric = ERROR_VARIANCE
    public = (2 * ternary + 1) * ERROR_VARIANCE / 4.0 ** params.coeff_mod_bit_sizes[-1] + (1 + ternary) / 12
    expected = symmetric if is_symmetric(ckks) else public
    # A slot sums N coefficients and keeps the real part; 4096 samples are within 10 % of the deviation.
    assert noise == pytest.approx(np.sqrt(expected * params.slot_count) / 2.0**params.scale_bits, rel=0.1)


def test_tenseal_holds_the_secret_key_and_no_other():
    federation = federate("tenseal", CLARA)
    backend = load_backend("tenseal")(federation.config.params, federation.keys.client)
    with pytest.raises(RuntimeError, match="public key is not set"):
        backend._encryptor.encrypt(backend._plaintext, backend._ciphertext)
    secret = federation.keys.client.secret_material().secret.tobytes()
    backend._channel.saved(backend._plaintext)  # and no trace of it where objects are saved to
    assert secret[:64] not in Path(backend._channel.path).read_bytes()


def test_pyfhel_holds_secret_and_public_key_and_no_other():
    federation = federate("pyfhel", CLARA)
    native = load_backend("pyfhel")(federation.config.params, federation.keys.client)._native
    assert not native.is_secret_key_empty()
    assert not native.is_public_key_empty()
    assert native.is_rotate_key_empty()
    assert native.is_relin_key_empty()


def test_nothing_is_printed_or_logged(lib, capfd, caplog):
    """From key generation to the mean, several blocks long: no output of ours or of a library, and no log."""
    caplog.set_level(logging.DEBUG)
    config = federate(lib, LARGE).config
    keys = secagg.generate_keys(config)
    state = {"w": np.ones(10_000)}
    sites = [secagg.Client(config, keys.client, name) for name in ("a", "b")]
    aggregator = secagg.Aggregator(config, keys.server)
    for site in sites:
        aggregator.add(site.encrypt(state))
    sites[0].decrypt(aggregator.finish(), like=state)
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_a_ring_is_that_of_the_ciphertext(ckks):
    federation = federate(ckks, CLARA | {"seeded": False})
    params, primes = federation.config.params, federation.keys.server.primes
    words = load_backend(ckks)(params, federation.keys.client).encrypt(np.zeros(4096))
    assert Ring.of_update(params, primes) == Ring((primes[0], primes[1]) * 2, 8192)
    assert Ring.of_update(replace(params, seeded=True), primes) == Ring((primes[0], primes[1]), 8192)
    assert words.shape == (4 * 8192,)
    largest = words.reshape(4, 8192).max(axis=1)
    for top, prime in zip(largest.tolist(), (primes[0], primes[1]) * 2, strict=True):
        assert prime * 0.99 < top < prime
