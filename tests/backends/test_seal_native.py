"""SEAL itself held against what is assumed of it: moduli, formats, addition, noise, and where decryption ends."""

from __future__ import annotations

import math

import numpy as np
import pytest
import seal
import tenseal_format
from lattice import ALL, BGV, add_words, assert_slots, bgv, data_primes, key_of, random_slots
from phases import coefficients, phase

from secagg.backends import seal_format
from secagg.backends.pyfhel_backend import PyfhelBackend
from secagg.backends.seal_backend import SEALBackend
from secagg.errors import ConfigError
from secagg.scheme.noise import ERROR_BOUND, bgv_noise
from secagg.scheme.params import BGVParams
from secagg.trust.key import KeyMaterial

MINOR = 4  # seal-python 4.4 is SEAL 4.4

each_bgv = pytest.mark.parametrize("params", BGV.values(), ids=BGV)
each = pytest.mark.parametrize("params", ALL.values(), ids=ALL)


def phase_of(words, params, key):
    """Message plus noise of a block, coefficient by coefficient."""
    return phase(words, key.secret_material().secret, data_primes(params, key))


# Noise.


@each_bgv
def test_a_phase_is_the_message_modulo_t(params):
    """This holds the Python above against SEAL: an encryption of equal slots is a constant polynomial."""
    key = key_of(SEALBackend, params)
    t = key.server.plain_modulus
    words = SEALBackend(params, key).encrypt(np.full(params.slot_count, t - 5, np.uint64))
    remainders = phase_of(words, params, key) % t
    assert remainders[0] == t - 5
    assert not remainders[1:].any()


@pytest.mark.parametrize(
    ("backend", "params"),
    [pytest.param(SEALBackend, params, id=f"seal {name}") for name, params in BGV.items()]
    + [pytest.param(PyfhelBackend, params, id=f"pyfhel {name}") for name, params in BGV.items() if name != "full"],
)
def test_noise_stays_within_the_bound_of_the_planner(backend, params):
    """Also that of a sum, which therefore decrypts."""
    key = key_of(backend, params)
    t, native = key.server.plain_modulus, backend(params, key)
    special = key.server.primes[-1] if params.has_special_prime else None
    bound = bgv_noise(params.poly_modulus_degree, t, special, backend.symmetric)
    plain = [random_slots(params, t, seed) for seed in range(4)]
    blocks = [native.encrypt(slots).copy() for slots in plain]
    largest = max(abs(phase_of(block, params, key)).max() for block in blocks)
    assert largest <= bound
    if backend.symmetric:
        assert bound <= t * (ERROR_BOUND + 1)
        assert largest > 8 * t  # 2.5 standard deviations: it is the noise that was measured
    total = add_words(blocks, params, key)
    assert abs(phase_of(total, params, key)).max() <= len(blocks) * bound
    assert 2 * len(blocks) * bound < math.prod(data_primes(params, key))
    expected = sum(slots.astype(object) for slots in plain) % t
    assert_slots(native.decrypt(total), expected.astype(np.uint64))


@pytest.mark.parametrize("params", [BGV["special prime"], BGV["plain modulus above every prime"]])
def test_division_by_the_special_prime_rounds_to_one_side(params):
    """What it leaves behind is 0 to t, not −t/2 to t/2: t/2 in the mean, and the same for every site."""
    key = key_of(PyfhelBackend, params)
    t, native = key.server.plain_modulus, PyfhelBackend(params, key)
    zero = np.zeros(params.slot_count, np.uint64)
    mean = np.mean([(phase_of(native.encrypt(zero), params, key) / t).astype(float) for _ in range(8)], axis=0)
    prime = key.server.primes[0]
    secret = coefficients(key.secret_material().secret[0], prime)
    secret = np.where(secret > prime // 2, secret - prime, secret).astype(float)
    assert set(secret) == {-1.0, 0.0, 1.0}
    ones_times_secret = 2 * np.cumsum(secret) - secret.sum()  # modulo X^N + 1
    slope, _ = np.polyfit(1 + ones_times_secret, mean, 1)
    assert slope == pytest.approx(-0.5, abs=0.1)


@each_bgv
def test_decryption_is_right_up_to_half_of_q(params):
    """SEAL converts bases in floating point: of the last 2**-40 nothing is asked."""
    key = key_of(SEALBackend, params)
    t, native, primes = key.server.plain_modulus, SEALBackend(params, key), data_primes(params, key)
    q, edge = math.prod(primes), math.prod(primes) // 2 - (math.prod(primes) >> 40)
    ciphertext = native.encrypt(np.zeros(params.slot_count, np.uint64)).reshape(2, len(primes), -1).astype(object)
    secret = key.secret_material().secret.astype(object)
    for constant in (edge, -edge, edge // t * t, t, -1):
        assert abs(constant) < q / 2
        words = ciphertext.copy()
        for row, prime in enumerate(primes):
            words[0, row] = (constant - words[1, row] * secret[row]) % prime
        slots = native.decrypt(words.astype(np.uint64).reshape(-1))
        assert_slots(slots, np.full(params.slot_count, constant % t, np.uint64))


# Formats.


def native_context(params, key):
    server = key.server
    parms = seal.EncryptionParameters(seal.scheme_type.bgv if params.scheme == "BGV" else seal.scheme_type.ckks)
    parms.set_poly_modulus_degree(params.poly_modulus_degree)
    parms.set_coeff_modulus([seal.Modulus(prime) for prime in server.primes])
    if server.plain_modulus:
        parms.set_plain_modulus(seal.Modulus(server.plain_modulus))
    return parms, seal.SEALContext(parms)


@each
def test_parameters_and_keys_are_packed_as_seal_saves_them(params):
    key = key_of(SEALBackend, params)
    parms, context = native_context(params, key)
    packed = tenseal_format.pack_parms(params, key.server.primes, MINOR, key.server.plain_modulus)
    assert packed == parms.to_bytes()
    generator = seal.KeyGenerator(context)
    secret, public = generator.secret_key().to_string(), generator.create_public_key().to_string()
    of = (params, key.server.primes, key.server.plain_modulus)
    material = KeyMaterial(
        key.server.primes,
        seal_format.unpack_secret_key(secret[seal_format.HEADER_NBYTES :], *of),
        seal_format.unpack_public_key(public[seal_format.HEADER_NBYTES :], *of),
        key.server.plain_modulus,
    )
    assert seal_format.pack_secret_key(params, material, MINOR) == secret
    assert seal_format.pack_public_key(params, material, MINOR) == public


@each
def test_words_add_as_the_library_adds(params):
    key = key_of(SEALBackend, params)
    native = SEALBackend(params, key)
    _, context = native_context(params, key)
    prefix = seal_format.pack_ciphertext_prefix(params, key.server.primes, MINOR, key.server.plain_modulus)
    blocks = [native.encrypt(random_slots(params, key.server.plain_modulus, seed)).copy() for seed in range(3)]
    ciphertexts = []
    for block in blocks:
        ciphertexts.append(seal.Ciphertext())
        ciphertexts[-1].load_bytes(context, prefix + block.tobytes())
    total = seal.Evaluator(context).add_many(ciphertexts).to_string()
    assert total == prefix + add_words(blocks, params, key).tobytes()


@each
def test_generated_moduli_are_those_asked_for(params):
    server = key_of(SEALBackend, params).server
    step = 2 * params.poly_modulus_degree
    assert [prime.bit_length() for prime in server.primes] == list(params.coeff_mod_bit_sizes)
    assert all(prime % step == 1 for prime in server.primes)
    if isinstance(params, BGVParams):
        assert server.plain_modulus.bit_length() == params.plain_modulus_bits
        assert server.plain_modulus % step == 1  # slots
    else:
        assert server.plain_modulus == 0


@pytest.mark.parametrize(
    ("sizes", "plain", "carried"),
    [((53,), 42, 1), ((53, 53), 42, 1), ((53, 53), 60, 2), ((36, 36), 60, 2), ((36, 36, 34), 60, 2)],
)
def test_the_last_prime_is_set_aside_if_the_others_exceed_the_plain_modulus(sizes, plain, carried):
    degree = 2048 if len(sizes) == 1 else 4096
    parms = seal.EncryptionParameters(seal.scheme_type.bgv)
    parms.set_poly_modulus_degree(degree)
    parms.set_coeff_modulus(seal.CoeffModulus.Create(degree, list(sizes)))
    parms.set_plain_modulus(seal.PlainModulus.Batching(degree, plain))
    context = seal.SEALContext(parms)
    assert context.parameters_set()
    assert len(context.first_context_data().parms().coeff_modulus()) == carried


@pytest.mark.parametrize("plain", [2**39 + 1, 2**40 - 1])
def test_another_number_of_primes_than_the_params_say_is_refused(plain):
    """Sizes in bits do not always tell which of the plain modulus and the product of the other primes is larger."""
    params, primes = bgv(4096, (20, 20, 42), 40), (2**20 - 2**13 + 1, 2**20 - 2**14 + 1, 2**42 - 2**14 + 1)
    carried = 2 if plain < primes[0] * primes[1] else 3
    if carried == len(params.data_bit_sizes):
        seal_format.check_moduli(params, primes, plain)
    else:
        with pytest.raises(ConfigError, match=f"ciphertexts carry {carried} of the primes"):
            seal_format.check_moduli(params, primes, plain)
