"""Promise 7 and key files: what a key shows, what its file holds, and every file that is none."""

from __future__ import annotations

import copy
import os
import pickle
import stat

import numpy as np
import pytest
from blake3 import blake3
from container import CLIENT_KEY, SERVER_KEY, UPDATE, Container
from federation import CLARA, TINY, federate, other_keys, random_states

import secagg
from secagg import ClientKey, ServerKey, load_key
from secagg.errors import KeyFileError, MismatchError, StorageError


@pytest.fixture
def keys(lib):
    return federate(lib).keys


@pytest.fixture
def path(tmp_path):
    return tmp_path / "some.key"


def blob_of(key, path):
    key.save(path)
    return path.read_bytes()


def test_a_client_key_is_the_same_after_saving(lib, path):
    federation = federate(lib)
    federation.keys.client.save(path)
    key = load_key(path)
    assert isinstance(key, ClientKey)
    assert key.params == federation.config.params
    assert key.server == federation.keys.server
    assert key.fingerprint == federation.keys.client.fingerprint
    states = random_states(2, {"w": (9,)})
    restored = secagg.Client(federation.config, key, "restored")
    federation.assert_mean(restored.decrypt(federation.sum(states)), states)


def test_a_server_key_is_the_same_after_saving(keys, path):
    keys.server.save(str(path))
    assert load_key(str(path)) == keys.server


def test_the_server_key_holds_nothing_secret(keys, path):
    """It is params, primes and fingerprint, to the byte."""
    container = Container.read(blob_of(keys.server, path))
    assert container.kind == SERVER_KEY
    assert container.header == {
        "fingerprint": keys.client.fingerprint,
        "params": TINY,
        "primes": list(keys.server.primes),
    }
    assert container.payloads == []


def test_the_client_key_file_is_as_the_format_says(keys, path):
    """Words and fingerprint, computed here from docs/wire-format.md alone."""
    container = Container.read(blob_of(keys.client, path))
    material = keys.client.secret_material()
    payload = b"".join(container.payloads)
    assert container.kind == CLIENT_KEY
    assert payload == material.secret.astype("<u8").tobytes() + material.public.astype("<u8").tobytes()
    primes = ", ".join(map(str, container.header["primes"]))
    text = f"secagg key v1\0CKKS\0{container.header['params']['poly_modulus_degree']}\0[{primes}]\0".encode()
    assert blake3(text + payload).hexdigest() == container.header["fingerprint"] == keys.client.fingerprint


def test_a_large_key_takes_several_frames(path):
    key = federate(
        "tenseal", CLARA | {"poly_modulus_degree": 16384, "coeff_mod_bit_sizes": [60, 40, 40, 40]}
    ).keys.client
    container = Container.read(blob_of(key, path))
    assert [len(payload) for payload in container.payloads] == [1 << 20, 3 * 4 * 16384 * 8 - (1 << 20)]
    assert load_key(path).fingerprint == key.fingerprint


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077], ids=oct)
def test_permissions(keys, path, umask):
    """0600 for the secret, also over a file that all could read, whatever the umask."""
    path.write_bytes(b"")
    path.chmod(0o666)
    before = os.umask(umask)
    try:
        keys.client.save(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        keys.server.save(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
    finally:
        os.umask(before)
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_a_key_shows_its_fingerprint_only(keys):
    shown = [repr(keys.client), str(keys.client), f"{keys.client}", repr([keys.client])]
    assert all(f"ClientKey({keys.client.fingerprint[:16]}…)" in text and len(text) < 40 for text in shown)
    assert repr(keys.client) in repr(keys)
    assert not hasattr(keys.client, "__dict__")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_client_key_is_not_pickled(keys, protocol):
    with pytest.raises(TypeError, match="secret"):
        pickle.dumps(keys.client, protocol)
    with pytest.raises(TypeError, match="secret"):
        pickle.dumps({"keys": keys}, protocol)


def test_a_client_key_is_not_copied(keys):
    for copier in (copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="secret"):
            copier(keys.client)


def test_a_key_of_the_other_role(lib):
    federation = federate(lib)
    with pytest.raises(KeyFileError, match=r"client key \(client.key\) is needed here; got ServerKey"):
        secagg.Client(federation.config, federation.keys.server, "site")
    with pytest.raises(KeyFileError, match=r"server key \(server.key\) is needed here; got ClientKey"):
        secagg.Aggregator(federation.config, federation.keys.client)
    with pytest.raises(KeyFileError, match="got KeyPair"):
        secagg.Client(federation.config, federation.keys, "site")
    with pytest.raises(KeyFileError, match="got NoneType"):
        secagg.Aggregator(federation.config, None)


def test_a_key_of_other_params(lib):
    federation = federate(lib)
    clara = federate(lib, CLARA).keys
    with pytest.raises(MismatchError, match=r"the key was made for .*8192.*, the configuration has .*2048"):
        secagg.Client(federation.config, clara.client, "site")
    with pytest.raises(MismatchError, match="the key was made for"):
        secagg.Aggregator(federation.config, clara.server)


def refused(path, blob, match):
    path.write_bytes(blob)
    with pytest.raises(KeyFileError, match=match) as caught:
        load_key(path)
    assert repr(str(path)) in str(caught.value)


def test_a_missing_key_file(tmp_path):
    with pytest.raises(KeyFileError, match="cannot read the key file .*No such file"):
        load_key(tmp_path / "client.key")
    with pytest.raises(KeyFileError, match="cannot read the key file .*not a regular file"):
        load_key(tmp_path)


def test_a_file_that_is_too_large(path):
    path.touch()
    os.truncate(path, (64 << 20) + 1)  # takes no room on the disk
    with pytest.raises(KeyFileError, match="too large"):
        load_key(path)


@pytest.mark.parametrize(
    "blob",
    [b"", b"x", b"SECAGG\r\n", b"-----BEGIN PRIVATE KEY-----\n", bytes(5000), b"SECAGG\n" + bytes(100)],
    ids=repr,
)
def test_garbage(path, blob):
    refused(path, blob, "is not a usable key file: (truncated|not a secagg file)")


@pytest.mark.parametrize("role", ["client", "server"])
def test_truncation_and_trailing_bytes(keys, path, role):
    blob = blob_of(getattr(keys, role), path)
    head = len(Container.read(blob).head)
    for size in {
        *range(20),
        head - 33,
        head - 32,
        head - 1,
        head,
        head + 1,
        head + 32,
        head + 33,
        len(blob) // 2,
        len(blob) - 1,
    }:
        if size < len(blob):
            refused(path, blob[:size], "usable key file: (truncated|frame .* is damaged|.* bytes of words)")
    for more in (b"\0", bytes(32), bytes(100), blob[head:] or bytes(64)):
        refused(path, blob + more, "usable key file: .*(truncated|trailing|damaged)")


@pytest.mark.parametrize("role", ["client", "server"])
def test_one_flipped_bit(keys, path, role):
    """In every byte of the head, and all over the words."""
    blob = blob_of(getattr(keys, role), path)
    rng = np.random.default_rng(0)
    head = len(Container.read(blob).head)
    for place in (*range(head), *range(head, len(blob), 997), *range(len(blob) - 40, len(blob))):
        damaged = bytearray(blob)
        damaged[place] ^= 1 << rng.integers(8)
        refused(path, damaged, "usable key file")


def edit(**changes):
    def change(container):
        container.header.update(changes)

    return change


def edit_params(**changes):
    def change(container):
        container.header["params"].update(changes)

    return change


def drop(name):
    def change(container):
        del container.header[name]

    return change


def no_change_but(**changes):
    def change(container):
        for name, value in changes.items():
            setattr(container, name, value)

    return change


def put_large_word(container):
    words = np.frombuffer(container.payloads[0], "<u8").copy()
    words[5] = container.header["primes"][0]
    container.payloads[0] = words.tobytes()


def spaced(container):
    container.header = b" " + container.to_bytes()[16 : 16 + len(container.head) - 48]


FAULTS = {
    "other fingerprint": (edit(fingerprint="ab" * 32), "fingerprint"),
    "fingerprint of another type": (edit(fingerprint=7), "fingerprint"),
    "fingerprint too short": (edit(fingerprint="ab"), "fingerprint"),
    "fingerprint is no number": (edit(fingerprint="xy" * 32), "fingerprint"),
    "another prime": (edit(primes=[2**27 - 1, 2**26 - 1]), "fingerprint|not below"),
    "an even prime": (edit(primes=[2**27 - 2, 2**26 - 1]), "primes"),
    "a prime of other bits": (edit(primes=[2**28 - 1, 2**26 - 1]), "primes"),
    "primes are text": (edit(primes=["1", "2"]), "primes"),
    "a prime less": (edit(primes=[2**27 - 1]), "primes"),
    "primes are missing": (drop("primes"), "other keys"),
    "a key more": (edit(more=1), "other keys"),
    "params are no object": (edit(params=[1]), "other keys"),
    "params over the ceiling": (edit_params(coeff_mod_bit_sizes=[27, 27]), "add up to 54 bits"),
    "params of another degree": (edit_params(poly_modulus_degree=4096), ""),
    "params with a key more": (edit_params(more=1), "unknown key"),
    "params with another scale": (edit_params(scale_bits=10**400), "scale_bits"),
    "not canonical": (spaced, "canonical"),
    "header is a list": (no_change_but(header=[]), "not a JSON object"),
    "header is no JSON": (no_change_but(header=b"{"), "not strict JSON"),
    "an update": (no_change_but(kind=UPDATE), "holds an update"),
    "kind unknown": (no_change_but(kind=9), "unknown kind"),
    "version 2": (no_change_but(version=2), "format version 2; this release reads version 1"),
    "reserved byte": (no_change_but(reserved=1), "reserved byte"),
}
CLIENT_FAULTS = {
    "a word that is not below its prime": (put_large_word, "not below its prime"),
    "no words": (no_change_but(payloads=[]), "truncated"),
    "a frame more": (lambda container: container.payloads.append(b"x"), ""),
    "words of another key": (
        lambda container: container.payloads.__setitem__(0, bytes(len(container.payloads[0]))),
        "fingerprint",
    ),
    "taken for a server key": (no_change_but(kind=SERVER_KEY), "trailing bytes"),
}
SERVER_FAULTS = {
    "words in it": (no_change_but(payloads=[bytes(64)]), "trailing bytes"),
    "taken for a client key": (no_change_but(kind=CLIENT_KEY), "truncated"),
}
#: A server key holds no words that its numbers could be held against.
UNNOTICED_BY_SERVER = ("other fingerprint", "another prime", "params of another degree")
CASES = [("client", name, *fault) for name, fault in (FAULTS | CLIENT_FAULTS).items()] + [
    ("server", name, *fault) for name, fault in (FAULTS | SERVER_FAULTS).items() if name not in UNNOTICED_BY_SERVER
]


@pytest.mark.parametrize(
    ("role", "name", "change", "match"), CASES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_well_made_container_that_is_no_key(keys, path, role, name, change, match):
    """Every digest fits; what it says is wrong."""
    container = Container.read(blob_of(getattr(keys, role), path))
    change(container)
    refused(path, container.to_bytes(), f"usable key file: .*{match}")


def test_an_update_is_no_key(lib, path):
    federation = federate(lib)
    refused(path, federation.site().encrypt({"w": np.ones(2)}).to_bytes(), "holds an update")


def test_a_key_is_saved_whole_or_not_at_all(keys, path, monkeypatch):
    """A failure while writing leaves the earlier key as it was, and no other file."""
    before = blob_of(keys.client, path)

    def no_space(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(StorageError, match="No space left"):
        keys.client.save(path)
    assert path.read_bytes() == before
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_fingerprints_tell_keys_apart(lib):
    federation = federate(lib)
    assert federation.keys.client.fingerprint != other_keys(federation).keys.client.fingerprint
    assert isinstance(federation.keys.server, ServerKey)
    assert len(bytes.fromhex(federation.keys.server.fingerprint)) == 32
