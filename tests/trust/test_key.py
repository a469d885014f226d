"""Promise 7 and key files: what a key shows, what its file holds, and every file that is none."""

from __future__ import annotations

import copy
import os
import pickle
import stat
from dataclasses import replace

import numpy as np
import pytest
from container import CLIENT_KEY, SERVER_KEY, UPDATE, Container, fingerprint
from federation import CLARA, LARGE, LATTICE, federate, other_keys, random_states

import secagg
from secagg import ClientKey, ServerKey, load_key
from secagg.errors import ConfigError, FormatError, KeyFileError, KeyMismatchError, MismatchError, StorageError


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


def test_the_server_key_holds_nothing_secret(lib, path):
    """It is params, moduli, epoch and fingerprint, to the byte."""
    federation = federate(lib)
    keys, params = federation.keys, federation.config.params.to_dict()
    container = Container.read(blob_of(keys.server, path))
    assert container.kind == SERVER_KEY
    assert container.header == {
        "epoch": 0,
        "fingerprint": keys.client.fingerprint,
        "params": params,
        "plain_modulus": keys.server.plain_modulus,
        "primes": list(keys.server.primes),
    }
    assert container.payloads == []
    assert [prime.bit_length() for prime in keys.server.primes] == params.get("coeff_mod_bit_sizes", [])
    assert keys.server.plain_modulus.bit_length() == params.get("plain_modulus_bits", 0)
    order = 2 * params.get("poly_modulus_degree", 1)
    assert all(modulus % order == 1 for modulus in (*keys.server.primes, keys.server.plain_modulus) if modulus)


def test_the_client_key_file_is_as_the_format_says(keys, path):
    """Words and fingerprint, computed here from docs/wire-format.md alone."""
    container = Container.read(blob_of(keys.client, path))
    material = keys.client.secret_material()
    payload = b"".join(container.payloads)
    assert container.kind == CLIENT_KEY
    words = material.secret.astype("<u8").tobytes() + material.public.astype("<u8").tobytes()
    assert payload == keys.client._root + words
    assert fingerprint(container.header, payload) == container.header["fingerprint"] == keys.client.fingerprint
    degree, rows = container.header["params"].get("poly_modulus_degree"), len(container.header["primes"])
    assert len(payload) == 32 + (8 * 3 * rows * degree if degree else 0)


def test_a_large_key_takes_several_frames(path):
    key = federate(
        "tenseal", CLARA | {"poly_modulus_degree": 16384, "coeff_mod_bit_sizes": [60, 40, 40, 40]}
    ).keys.client
    container = Container.read(blob_of(key, path))
    assert [len(payload) for payload in container.payloads] == [1 << 20, 32 + 3 * 4 * 16384 * 8 - (1 << 20)]
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
    material = keys.client.secret_material()
    secret = {str(word) for word in (*material.secret.reshape(-1)[:1], *material.secret.reshape(-1)[-1:])}
    assert not any(word in text for word in secret for text in (repr(material), str(material)))
    root = keys.client._root
    for form in (repr(root)[2:10], root.hex()[:8], str(int.from_bytes(root, "little"))[:10]):
        assert not any(form in text for text in (*shown, repr(keys), repr(keys.server), repr(material)))


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
    with pytest.raises(KeyFileError, match=r"client key \(he-client.key\) is needed here; got ServerKey"):
        secagg.Client(federation.config, federation.keys.server, "site")
    with pytest.raises(KeyFileError, match=r"server key \(he-server.key\) is needed here; got ClientKey"):
        secagg.Aggregator(federation.config, federation.keys.client)
    with pytest.raises(KeyFileError, match="got KeyPair"):
        secagg.Client(federation.config, federation.keys, "site")
    with pytest.raises(KeyFileError, match="got NoneType"):
        secagg.Aggregator(federation.config, None)


def test_a_key_of_other_params(lib):
    federation = federate(lib)
    others = [federate("flashe" if lib != "flashe" else "seal-BGV")] + [federate(lib, LARGE)] * (lib in LATTICE)
    for other in others:
        with pytest.raises(MismatchError, match="the key was made for other params") as caught:
            secagg.Client(federation.config, other.keys.client, "site")
        name = "scheme" if other.config.params.scheme != federation.config.params.scheme else "coeff_mod_bit_sizes"
        theirs, mine = (config.params.to_dict()[name] for config in (other.config, federation.config))
        assert f"{name} {theirs!r}, expected {mine!r}" in str(caught.value)
        with pytest.raises(MismatchError, match="the key was made for"):
            secagg.Aggregator(federation.config, other.keys.server)


ENCODINGS = {
    "CKKS": {"scale_bits": 19, "complex_slots": True, "seeded": False},
    "BGV": {"value_bits": 7, "rounding": "nearest", "overflow": "clip", "error_feedback": True},
    "FLASHE": {"value_bits": 16, "rounding": "nearest", "overflow": "clip", "error_feedback": True},
}


def test_a_key_serves_every_encoding(lib):
    """How values become plaintexts is no matter of the key: a federation may change it and keep its key."""
    federation = federate(lib)
    for name, value in ENCODINGS[federation.config.params.scheme].items():
        params = replace(federation.config.params, **{name: value})
        changed = replace(federation, config=replace(federation.config, params=params))
        states = random_states(2, {"w": (9,)})
        changed.assert_mean(changed.site().decrypt(changed.sum(states)), states)


# Epochs.


def test_a_key_of_another_epoch(lib, path):
    """Updates and aggregates say the epoch of their key; those of another are refused before any other of the key."""
    federation = federate(lib)
    keys = secagg.generate_keys(federation.config, epoch=7)
    assert (federation.keys.server.epoch, keys.server.epoch) == (0, 7)
    keys.client.save(path)
    assert Container.read(path.read_bytes()).header["epoch"] == load_key(path).server.epoch == 7
    later, states = replace(federation, keys=keys), random_states(2, {"w": (9,)})
    aggregate = later.sum(states)
    assert aggregate.header.epoch == 7
    later.assert_mean(later.site().decrypt(aggregate), states)
    with pytest.raises(KeyMismatchError, match="is of epoch 7 of the key, expected epoch 0"):
        federation.site().decrypt(aggregate)
    with pytest.raises(KeyMismatchError, match="is of epoch 7 of the key, expected epoch 0"):
        federation.aggregator().add(later.site().encrypt(states[0]))


@pytest.mark.parametrize("epoch", [-1, 2**32, 1.0, "0", None, True], ids=repr)
def test_an_epoch_that_cannot_be(epoch):
    with pytest.raises(ConfigError, match="epoch is"):
        secagg.generate_keys(federate("flashe").config, epoch=epoch)


def test_the_epoch_is_in_the_fingerprint(lib):
    """The same words under another epoch are another key."""
    key = federate(lib).keys.client
    later = [ClientKey(key.params, key.secret_material(), key._root, epoch) for epoch in (0, 1, 2**32 - 1)]
    assert later[0].fingerprint == key.fingerprint
    assert len({key.fingerprint for key in later}) == 3


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
    with pytest.raises(KeyFileError, match="has more than 67108864 bytes"):
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


def change_primes(change):
    """Other primes, from those that are there."""

    def edit(container):
        container.header["primes"] = change(container.header["primes"])

    return edit


def double_degree(container):
    container.header["params"]["poly_modulus_degree"] *= 2


def other_plain_modulus(change):
    def edit(container):
        container.header["plain_modulus"] = change(container.header["plain_modulus"])

    return edit


def half_payload(container):
    (payload, *_) = container.payloads
    container.payloads = [payload[: len(payload) // 2]]


FAULTS = {
    "other fingerprint": (edit(fingerprint="ab" * 32), "fingerprint"),
    "fingerprint of another type": (edit(fingerprint=7), "fingerprint"),
    "fingerprint too short": (edit(fingerprint="ab"), "fingerprint"),
    "fingerprint is no number": (edit(fingerprint="xy" * 32), "fingerprint"),
    "primes are missing": (drop("primes"), "other keys"),
    "primes are no list": (edit(primes=7), "primes"),
    "primes are null": (edit(primes=None), "primes"),
    "a prime more": (change_primes(lambda primes: [*primes, 2**26 - 1]), "primes"),
    "plain modulus is missing": (drop("plain_modulus"), "other keys"),
    "plain modulus is negative": (edit(plain_modulus=-1), "plain modulus"),
    "plain modulus is even": (edit(plain_modulus=2), "plain modulus"),
    "plain modulus is a text": (edit(plain_modulus="0"), "plain modulus"),
    "plain modulus is a float": (edit(plain_modulus=0.0), "plain modulus"),
    "plain modulus is a bool": (edit(plain_modulus=False), "plain modulus"),
    "plain modulus of other bits": (other_plain_modulus(lambda plain: 2 * plain + 1), "plain modulus"),
    "another epoch": (edit(epoch=1), "fingerprint"),
    "epoch is missing": (drop("epoch"), "other keys"),
    "epoch is negative": (edit(epoch=-1), "epoch is -1"),
    "epoch is too large": (edit(epoch=2**32), "epoch is 4294967296"),
    "epoch is a bool": (edit(epoch=False), "epoch is False"),
    "epoch is a float": (edit(epoch=0.0), "epoch is 0.0"),
    "a key more": (edit(more=1), "other keys"),
    "params are no object": (edit(params=[1]), "other keys"),
    "params of another scheme": (edit_params(scheme="BFV"), "scheme is 'BFV'"),
    "params with a key more": (edit_params(more=1), "unknown key"),
    "params with another scale": (edit_params(scale_bits=10**400), "scale_bits"),
    "not canonical": (spaced, "canonical"),
    "header is a list": (no_change_but(header=[]), "not a JSON object"),
    "header is no JSON": (no_change_but(header=b"{"), "not strict JSON"),
    "an update": (no_change_but(kind=UPDATE), "is of kind 'update'"),
    "kind unknown": (no_change_but(kind=9), "unknown kind"),
    "version 1": (no_change_but(version=1), "format version 1; this release reads version 4"),
    "reserved byte": (no_change_but(reserved=1), "reserved byte"),
}
CLIENT_FAULTS = {
    "no words": (no_change_but(payloads=[]), "truncated"),
    "half of the words": (half_payload, "truncated"),
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
LATTICE_FAULTS = {
    "another prime": (change_primes(lambda primes: [primes[0] - 2, *primes[1:]]), "fingerprint|not below"),
    "an even prime": (change_primes(lambda primes: [primes[0] - 1, *primes[1:]]), "primes"),
    "negative primes": (change_primes(lambda primes: [-prime for prime in primes]), "primes"),
    "a prime of other bits": (change_primes(lambda primes: [2 * primes[0] - 1, *primes[1:]]), "primes"),
    "primes are text": (change_primes(lambda primes: list(map(str, primes))), "primes"),
    "a prime less": (change_primes(lambda primes: primes[:-1]), "primes"),
    "params over the ceiling": (edit_params(coeff_mod_bit_sizes=[60] * 20), "add up to 1200 bits"),
    "params of another degree": (double_degree, ""),
}
LATTICE_CLIENT_FAULTS = {"a word that is not below its prime": (put_large_word, "not below its prime")}
BGV_FAULTS = {
    "an even plain modulus": (other_plain_modulus(lambda plain: plain - 1), "plain modulus"),
    "a negative plain modulus": (other_plain_modulus(lambda plain: -plain), "plain modulus"),
    "no plain modulus": (edit(plain_modulus=0), "plain modulus"),
    "another plain modulus": (other_plain_modulus(lambda plain: plain - 8192), "fingerprint"),
}
#: A server key holds no words that its numbers could be held against.
UNNOTICED_BY_SERVER = (
    "other fingerprint",
    "another epoch",
    "another prime",
    "params of another degree",
    "another plain modulus",
)


def cases(faults, client=(), server=()):
    """Role, name, change and match of each fault."""
    return [("client", name, *fault) for name, fault in (faults | dict(client)).items()] + [
        ("server", name, *fault) for name, fault in (faults | dict(server)).items() if name not in UNNOTICED_BY_SERVER
    ]


def each(cases):
    ids = [f"{role}, {name}" for role, name, _, _ in cases]
    return pytest.mark.parametrize(("role", "name", "change", "match"), cases, ids=ids)


def assert_no_key(variant, path, role, change, match):
    container = Container.read(blob_of(getattr(federate(variant).keys, role), path))
    change(container)
    refused(path, container.to_bytes(), f"usable key file: .*{match}")


@each(cases(FAULTS, CLIENT_FAULTS, SERVER_FAULTS))
def test_a_well_made_container_that_is_no_key(lib, path, role, name, change, match):
    """Every digest fits; what it says is wrong."""
    assert_no_key(lib, path, role, change, match)


@each(cases(LATTICE_FAULTS, LATTICE_CLIENT_FAULTS))
@pytest.mark.parametrize("lib", LATTICE)
def test_a_well_made_container_that_is_no_key_of_a_lattice(lib, path, role, name, change, match):
    assert_no_key(lib, path, role, change, match)


@each(cases(BGV_FAULTS))
@pytest.mark.parametrize("lib", [variant for variant in LATTICE if variant.endswith("BGV")])
def test_a_well_made_container_that_is_no_key_of_bgv(lib, path, role, name, change, match):
    assert_no_key(lib, path, role, change, match)


# The root, from which all derives but what decrypts a lattice's ciphertexts.

PURPOSES = (b"secagg mac point v1", b"secagg word tag v1", b"secagg flashe pad v1", b"secagg model v1")


def with_root(key, root):
    """The same lattice secret under another root."""
    return ClientKey(key.params, key.secret_material(), root, key.server.epoch)


def test_roots_are_fresh(lib):
    roots = [secagg.generate_keys(federate(lib).config).client._root for _ in range(4)]
    assert {len(root) for root in roots} == {32}
    assert len(set(roots)) == 4
    assert all(len(set(root)) > 8 for root in roots)


def test_the_root_is_drawn_from_the_system(monkeypatch):
    """It is no hash of what a library has drawn for the lattice."""
    asked = []
    monkeypatch.setattr("secrets.token_bytes", lambda count: asked.append(count) or bytes(range(count)))
    assert secagg.generate_keys(federate("flashe").config).client._root == bytes(range(32))
    assert asked == [32]


def test_the_fingerprint_covers_the_root(keys):
    """Every bit of it: keys that differ in it alone are two keys, to server and sites."""
    root = keys.client._root
    roots = [root, bytes(32), root[::-1]]
    roots += [root[:place] + bytes([root[place] ^ 1 << place % 8]) + root[place + 1 :] for place in range(32)]
    assert len({with_root(keys.client, each).fingerprint for each in roots}) == len(roots)
    assert with_root(keys.client, root).fingerprint == keys.client.fingerprint


@pytest.mark.parametrize("nbytes", [0, 16, 31, 33, 64])
def test_a_root_of_another_length(keys, nbytes):
    with pytest.raises(FormatError, match=f"the root of a key has 32 bytes, not {nbytes}"):
        with_root(keys.client, bytes(nbytes))


@pytest.mark.parametrize("lib", LATTICE)
def test_files_have_32_bytes_more_than_words(lib, path):
    key = federate(lib).keys.client
    material = key.secret_material()
    payload = b"".join(Container.read(blob_of(key, path)).payloads)
    assert len(payload) == 32 + material.secret.nbytes + material.public.nbytes
    assert payload[:32] == key._root
    assert load_key(path)._root == key._root


@pytest.mark.parametrize("lib", LATTICE)
def test_what_derives_does_not_depend_on_the_lattice_secret(lib, monkeypatch):
    """Were the fingerprint, a public hash, the same: other words change nothing, another root changes all."""
    key = federate(lib).keys.client
    material = key.secret_material()
    words = material._replace(secret=np.zeros_like(material.secret), public=material.public[::-1].copy())
    monkeypatch.setattr("secagg.trust.key._fingerprint", lambda *_: "ab" * 32)
    one, other_words, other_root = (
        ClientKey(key.params, *parts)
        for parts in ((material, key._root), (words, key._root), (material, key._root[::-1]))
    )
    for purpose in PURPOSES:
        assert one.subkey(purpose, b"x") == other_words.subkey(purpose, b"x") != other_root.subkey(purpose, b"x")


def test_what_derives_changes_with_epoch_and_purpose_and_fields(keys, monkeypatch):
    key = keys.client
    monkeypatch.setattr("secagg.trust.key._fingerprint", lambda *_: "ab" * 32)
    later = ClientKey(key.params, key.secret_material(), key._root, key.server.epoch + 1)
    found = [key.subkey(purpose, *fields) for purpose in PURPOSES for fields in ((), (b"a",), (b"a", b""), (b"", b"a"))]
    found += [later.subkey(purpose) for purpose in PURPOSES]
    assert len(set(found)) == len(found) == 20
    assert {len(derived) for derived in found} == {32}


def test_the_root_is_nowhere_to_be_seen(keys, path):
    """Nor in what errors say of a key file, and pickles of the pair refuse."""
    root = keys.client._root
    keys.client.save(path)
    blob = bytearray(path.read_bytes())
    blob[-1] ^= 1
    path.write_bytes(blob)
    with pytest.raises(KeyFileError) as caught:
        load_key(path)
    texts = [repr(keys), repr(keys.client), str(keys.client), repr(keys.server), str(caught.value)]
    for form in (repr(root)[2:14], root.hex()[:12], root[::-1].hex()[:12], str(int.from_bytes(root, "little"))[:12]):
        assert not any(form in text for text in texts)
    keys.server.save(path)
    assert root not in path.read_bytes()
    with pytest.raises(TypeError, match="secret"):
        pickle.dumps(keys)
    assert not any(root in pickle.dumps(keys.server, protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1))


def test_a_file_of_an_earlier_release_has_no_root(lib, path):
    """Its format says so, and its words alone are 32 bytes short; the error says what to do."""
    container = Container.read(blob_of(federate(lib).keys.client, path))
    payload = b"".join(container.payloads)[32:]
    container.payloads = [payload[start : start + (1 << 20)] for start in range(0, len(payload), 1 << 20)]
    container.header["fingerprint"] = fingerprint(container.header, payload)
    remedy = r"truncated or trailing bytes: .* made by an earlier release\? Have new kits made"
    refused(path, container.to_bytes(), remedy)
    container.version = 3
    refused(path, container.to_bytes(), "format version 3; this release reads version 4: make it again")


def test_a_file_with_a_root_of_zeros_is_not_taken_for_the_key(lib, path):
    container = Container.read(blob_of(federate(lib).keys.client, path))
    container.payloads[0] = bytes(32) + container.payloads[0][32:]
    refused(path, container.to_bytes(), "fingerprint does not fit .*earlier release; unpack the kit again")


@pytest.mark.parametrize("nbytes", [0, 8, 24, 31, 33, 40, 64])
def test_a_key_of_flashe_has_32_bytes(path, nbytes):
    """Also where the fingerprint fits."""
    container = Container.read(blob_of(federate("flashe").keys.client, path))
    payload = (container.payloads[0] * 2)[:nbytes]
    container.payloads = [payload] if payload else []
    container.header["fingerprint"] = fingerprint(container.header, payload)
    refused(path, container.to_bytes(), "truncated")


def test_an_update_is_no_key(lib, path):
    federation = federate(lib)
    refused(path, federation.site().encrypt({"w": np.ones(2)}).to_bytes(), "is of kind 'update'")


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
