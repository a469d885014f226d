"""Backends that wrap SEAL: they exchange keys and words, and refuse what the library would get wrong."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
from lattice import ALL, BGV, CKKS, assert_slots, bgv, key_of, random_slots

from secagg.backends.pyfhel_backend import PyfhelBackend
from secagg.backends.seal_backend import SEALBackend
from secagg.backends.tenseal_backend import TenSEALBackend
from secagg.errors import BackendError, ConfigError, DecryptionError
from secagg.trust.key import ClientKey

LIBRARIES = (SEALBackend, PyfhelBackend, TenSEALBackend)

each = pytest.mark.parametrize("params", ALL.values(), ids=ALL)
bgv_backends = pytest.mark.parametrize("backend", [SEALBackend, PyfhelBackend])


EXCHANGES = [
    pytest.param(*chosen, params, id=f"{'-'.join(backend.id for backend in chosen)} {name}")
    for name, params in ALL.items()
    for chosen in itertools.product(LIBRARIES, repeat=3)
    if (name.startswith("CKKS") or TenSEALBackend not in chosen) and (name != "BGV full" or chosen[1] is SEALBackend)
]


@pytest.mark.parametrize(("maker", "encrypter", "decrypter", "params"), EXCHANGES)
def test_keys_and_words_pass_between_libraries(maker, encrypter, decrypter, params):
    key, other = key_of(maker, params), key_of(SEALBackend, params)
    assert (key.server.primes, key.server.plain_modulus) == (other.server.primes, other.server.plain_modulus)
    slots = random_slots(params, key.server.plain_modulus)
    words = encrypter(params, key).encrypt(slots)
    assert words.shape == (2 * len(params.data_bit_sizes) * params.poly_modulus_degree,)
    assert_slots(decrypter(params, key).decrypt(words), slots)


@each
def test_buffers_are_used_again(params):
    """What an earlier block left in them does not show."""
    key = key_of(SEALBackend, params)
    native = SEALBackend(params, key)
    one, other = (random_slots(params, key.server.plain_modulus, seed) for seed in range(2))
    first = native.encrypt(one).copy()
    second = native.encrypt(other).copy()
    assert (first != second).mean() > 0.99
    for words, slots in ((first, one), (second, other), (first, one)):
        assert_slots(native.decrypt(words), slots)


@bgv_backends
def test_slots_out_of_range_are_refused(backend):
    """Pyfhel by itself would encrypt zeros in their place."""
    params = BGV["special prime"]
    key = key_of(backend, params)
    slots = np.zeros(params.slot_count, np.uint64)
    slots[-1] = key.server.plain_modulus
    with pytest.raises(BackendError, match="could not encrypt"):
        backend(params, key).encrypt(slots)
    slots[-1] -= np.uint64(1)
    assert_slots(backend(params, key).decrypt(backend(params, key).encrypt(slots)), slots)


def test_values_beyond_the_modulus_are_refused():
    params = CKKS["clara"]
    with pytest.raises(BackendError, match="too large"):
        SEALBackend(params, key_of(SEALBackend, params)).encrypt(np.full(4096, 2.0**70))


@pytest.mark.parametrize("params", [CKKS["clara"], BGV["special prime"]], ids=["CKKS", "BGV"])
@bgv_backends
def test_what_is_no_ciphertext_is_one_error(backend, params):
    native = backend(params, key_of(backend, params))
    words = native.encrypt(random_slots(params, key_of(backend, params).server.plain_modulus)).copy()
    words[0] = 2**64 - 1
    for wrong in (words, words[:-1]):
        with pytest.raises(DecryptionError) as caught:
            native.decrypt(wrong)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__


@bgv_backends
@pytest.mark.parametrize(
    "params", [bgv(1024, (26,), 12), bgv(4096, (53,), 60)], ids=["no such prime", "above the modulus"]
)
def test_params_that_no_library_takes(backend, params):
    with pytest.raises(ConfigError, match=f"{'SEAL' if backend is SEALBackend else 'Pyfhel'} refuses these params"):
        backend.generate(params)


@bgv_backends
def test_moduli_of_a_key_are_checked(backend):
    """A composite number is no modulus, and neither are those of other params."""
    params = BGV["special prime"]
    material = key_of(backend, params).secret_material()
    composite = ClientKey(params, material._replace(primes=(material.primes[0] + 2, material.primes[1])), bytes(32))
    with pytest.raises(ConfigError, match="refuses these params"):
        backend(params, composite)
    with pytest.raises(ConfigError, match="a plain modulus of 40 bits is asked for"):
        backend(bgv(4096, (53, 53), 40), key_of(backend, params))
    with pytest.raises(ConfigError, match="primes of .* bits are asked for"):
        backend(bgv(4096, (53, 52), 42), key_of(backend, params))


FORK = """
import os
from secagg.backends.tenseal_backend import _Channel

channel = _Channel()
channel.put(b"of the parent")
child = os.fork()
channel.put(b"of the child") if not child else os.waitpid(child, 0)
print(open(channel.path).read(), flush=True)
os._exit(0) if not child else None
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork")
def test_a_forked_process_does_not_share_its_parents_channel():
    """One ciphertext that two processes read, and each seeds with a nonce of its own, gives the secret key away."""
    run = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, check=True, timeout=300)
    assert run.stdout.split("\n") == ["of the child", "of the parent", ""]


@each
@bgv_backends
def test_nothing_is_printed(backend, params, capfd):
    key = ClientKey(params, backend.generate(params), bytes(32))
    native = backend(params, key)
    native.decrypt(native.encrypt(random_slots(params, key.server.plain_modulus)))
    assert capfd.readouterr() == ("", "")
