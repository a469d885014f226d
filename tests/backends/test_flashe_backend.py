"""FLASHE: words under pads that only who has the key can rebuild, each pad one of its own."""

from __future__ import annotations

import dataclasses
import hmac
import itertools
import pickle
from hashlib import sha256

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from federation import federate
from quantised import quantised, renamed, weight_digits

import secagg
from secagg.backends.flashe_backend import FLASHEBackend
from secagg.errors import ConfigError, KeyFileError, MismatchError
from secagg.scheme.keystream import PIECE_NBYTES
from secagg.scheme.params import FLASHE_BLOCK_WORDS, CKKSParams, FLASHEParams
from secagg.trust.key import ClientKey, KeyMaterial, KeyPair, load_key
from secagg.wire.header import Contribution

PARAMS = FLASHEParams(value_bits=16)
ROOT = bytes(7 * number % 256 for number in range(1, 33))
NO_WORDS = KeyMaterial((), np.empty(0, np.uint64), np.empty(0, np.uint64))
NONCE = bytes(range(32))
WORDS = 2 * FLASHE_BLOCK_WORDS


def key_of(root=ROOT, epoch=0):
    return ClientKey(PARAMS, NO_WORDS, root, epoch)


def federation_of(**aggregation):
    numbers = {"max_clients": 4, "max_abs": 1.0, **aggregation}
    return federate("flashe", {"value_bits": 16, "rounding": "nearest"}, **numbers)


def pad(key, round=0, site="site-1", nonce=NONCE, block=0, words=WORDS):
    """The pad of an update: the encryption of zeros."""
    cipher = FLASHEBackend(PARAMS, key).cipher(round, [Contribution(site, nonce)])
    return cipher.encrypt(block, np.zeros(words, np.uint64))


# The pad once more, from the documentation and RFC 5869.


def documented_pad(key, root, round, site, nonce, words=WORDS):
    """HKDF-SHA256 without salt, info of fields with their lengths before them, AES-256-CTR from counter 0."""
    fields = [
        b"secagg flashe pad v1",
        bytes.fromhex(key.fingerprint),
        key.server.epoch.to_bytes(8, "little"),
        round.to_bytes(8, "little"),
        site.encode("ascii"),
        nonce,
    ]
    info = b"".join(len(field).to_bytes(4, "little") + field for field in fields)
    extracted = hmac.digest(bytes(32), root, sha256)
    subkey = hmac.digest(extracted, info + b"\x01", sha256)
    encryptor = Cipher(algorithms.AES256(subkey), modes.CTR(bytes(16))).encryptor()
    return np.frombuffer(encryptor.update(bytes(8 * words)), "<u8")


@pytest.mark.parametrize("epoch", [0, 7])
def test_pads_are_as_documented(epoch):
    key = key_of(epoch=epoch)
    for round, site, nonce in [(0, "a", NONCE), (2**32 - 1, "x" * 64, bytes(32))]:
        np.testing.assert_array_equal(pad(key, round, site, nonce), documented_pad(key, ROOT, round, site, nonce))


def test_an_update_is_its_integers_and_the_pad():
    """Word for word, and several values in each: lane after lane."""
    federation = federation_of()
    client = federation.site("hospital-a")
    values = np.random.default_rng(0).uniform(-1, 1, 3 * FLASHE_BLOCK_WORDS)
    update = client.encrypt({"w": values}, round=5)
    (_, payload), *_ = update.frames()
    words = np.frombuffer(payload, "<u8")
    nonce = update.header.contributions[0].nonce
    key = federation.keys.client
    plain = words - documented_pad(key, key._root, 5, "hospital-a", nonce, words.size)
    lanes = federation.codec.lanes
    assert (lanes.bits, lanes.per_word) == (18, 3)
    blocks = plain.reshape(-1, 1, FLASHE_BLOCK_WORDS) >> (np.arange(3, dtype=np.uint64) * np.uint64(18)).reshape(
        1, 3, 1
    )
    found = (blocks & np.uint64(2**18 - 1)).astype(np.int64).reshape(-1) - 32767
    digits = weight_digits(16)
    assert found[: digits + 1].tolist() == [32767] * digits + [1]  # a weight of 1, and one site
    np.testing.assert_array_equal(found[digits + 1 :][: values.size], quantised(values, 1.0, 1.0, 16))
    assert not found[digits + 1 + values.size :].any()
    assert not (plain >> np.uint64(54)).any()


# Every pad is one of its own.


def test_pads_differ_by_all_that_they_are_made_of():
    other = bytes([*ROOT[:-1], ROOT[-1] ^ 128])
    pads = {
        "as it is": pad(key_of()),
        "another federation": pad(key_of(other)),
        "another epoch": pad(key_of(epoch=1)),
        "another round": pad(key_of(), round=1),
        "a round of 256 times as much": pad(key_of(), round=256),
        "another site": pad(key_of(), site="site-2"),
        "another nonce": pad(key_of(), nonce=bytes([*NONCE[:-1], 32])),
    }
    for (one, first), (two, second) in itertools.combinations(pads.items(), 2):
        assert (first != second).all(), (one, two)
        for shift in (1, 2, FLASHE_BLOCK_WORDS):  # nor is one the other further on
            assert (first[shift:] != second[:-shift]).all(), (one, two, shift)
    np.testing.assert_array_equal(pad(key_of()), pads["as it is"])


def test_an_epoch_is_part_of_the_pad_by_itself(monkeypatch):
    """Also were the fingerprint not to depend on it."""
    monkeypatch.setattr("secagg.trust.key._fingerprint", lambda *_: "ab" * 32)
    assert (pad(key_of()) != pad(key_of(epoch=1))).all()
    assert (pad(key_of()) == pad(key_of())).all()


def test_the_federation_is_part_of_the_pad_by_itself(monkeypatch):
    """Were two federations to share the secret."""
    one = pad(key_of())
    monkeypatch.setattr("secagg.trust.key._fingerprint", lambda *_: "ab" * 32)
    assert (one != pad(key_of())).all()


def test_encrypting_a_round_again_is_safe():
    """The same state for the same round: other words everywhere, so no difference of two updates is in the open."""
    site, state = federation_of().site(), {"w": np.linspace(-1, 1, 5000)}
    first, again = (site.encrypt(state, round=2) for _ in range(2))
    assert first.header.contributions[0].nonce != again.header.contributions[0].nonce
    words = [np.frombuffer(next(iter(update.frames()))[1], "<u8") for update in (first, again)]
    assert (words[0] != words[1]).all()
    difference = words[0] - words[1]
    assert np.unique(difference).size == difference.size


def test_subkeys_are_injective_in_their_fields(monkeypatch):
    """What HKDF gets can be taken apart again, so no two lists of fields give the same."""
    seen = []

    class Recorder:
        def __init__(self, algorithm, length, salt, info):
            assert (algorithm.name, length, salt) == ("sha256", 32, None)
            seen.append(info)

        def derive(self, secret):
            assert secret == ROOT
            return bytes(32)

    monkeypatch.setattr("cryptography.hazmat.primitives.kdf.hkdf.HKDF", Recorder)
    sites = ["a", "ab", "a.b", "x" * 64, "4"]
    nonces = [NONCE, bytes(32), b"\x04\x00\x00\x00" * 8]
    expected = []
    for epoch, round, site, nonce in itertools.product([0, 1, 2**32 - 1], [0, 1, 256, 2**32 - 1], sites, nonces):
        key = key_of(epoch=epoch)
        FLASHEBackend(PARAMS, key).cipher(round, [Contribution(site, nonce)])
        expected.append([bytes.fromhex(key.fingerprint), epoch, round, site, nonce])
    assert len(set(seen)) == len(expected)
    for info, fields in zip(seen, expected, strict=True):
        label, fingerprint, epoch, round, site, nonce = take_apart(info)
        assert label == b"secagg flashe pad v1"
        numbers = [int.from_bytes(epoch, "little"), int.from_bytes(round, "little")]
        assert [fingerprint, *numbers, site.decode(), nonce] == fields


def take_apart(info):
    fields = []
    while info:
        size, info = int.from_bytes(info[:4], "little"), info[4:]
        assert size <= len(info)
        field, info = info[:size], info[size:]
        fields.append(field)
    return fields


# Words.


def test_ciphertexts_look_uniform():
    """Of zeros: chi squared of bytes at each place of a word, and of each bit; 255 is expected, 450 never seen."""
    site = federation_of().site()
    blocks = [np.frombuffer(p, np.uint8) for _ in range(4) for _, p in site.encrypt({"w": np.zeros(40_000)}).frames()]
    data = np.concatenate(blocks).reshape(-1, 8)
    assert len(data) >= 4 * 13_333
    for place in range(8):
        counts = np.bincount(data[:, place], minlength=256)
        assert 120 < ((counts - len(data) / 256) ** 2 / (len(data) / 256)).sum() < 450
    ones = np.unpackbits(data, axis=1).mean(axis=0)
    assert np.abs(ones - 0.5).max() < 6 * 0.5 / np.sqrt(len(data))


def test_padding_is_under_the_pad_too():
    """Behind a model of one value, no word is a constant."""
    site = federation_of().site()
    words = [np.frombuffer(next(iter(site.encrypt({"w": np.ones(1)}).frames()))[1], "<u8") for _ in range(2)]
    assert words[0].size == FLASHE_BLOCK_WORDS
    assert np.unique(words[0]).size == FLASHE_BLOCK_WORDS
    assert (words[0] != words[1]).all()


def test_a_cipher_goes_block_by_block():
    """In any order and of any number of blocks: what is encrypted is what its place in the update says."""
    key, contribution = key_of(), [Contribution("a", NONCE)]
    blocks = 2 * PIECE_NBYTES // (8 * FLASHE_BLOCK_WORDS) + 3
    plain = np.arange(blocks * FLASHE_BLOCK_WORDS, dtype=np.uint64)
    backend = FLASHEBackend(PARAMS, key)
    whole = backend.cipher(0, contribution).encrypt(0, plain.copy())
    cipher = backend.cipher(0, contribution)
    for first, count in [(0, 1), (1, 2), (blocks - 1, 1), (3, blocks - 3), (0, 2)]:
        span = slice(first * FLASHE_BLOCK_WORDS, (first + count) * FLASHE_BLOCK_WORDS)
        np.testing.assert_array_equal(cipher.encrypt(first, plain[span].copy()), whole[span])
        np.testing.assert_array_equal(cipher.decrypt(first, whole[span].copy()), plain[span])


def test_sums_wrap_and_come_back():
    """Pads are far above the words: sums modulo 2**64 lose nothing."""
    backend, contributions = (
        FLASHEBackend(PARAMS, key_of()),
        [Contribution(f"s{n}", bytes([n] * 32)) for n in range(50)],
    )
    plain = np.random.default_rng(1).integers(0, 2**58, (50, WORDS), dtype=np.uint64)
    words = [backend.cipher(1, [item]).encrypt(0, row.copy()) for item, row in zip(contributions, plain, strict=True)]
    total = np.sum(words, axis=0, dtype=np.uint64)
    assert sum(map(int, total)) != sum(int(word.sum(dtype=object)) for word in words)  # it did wrap
    found = backend.cipher(1, contributions[::-1]).decrypt(0, total.copy())
    np.testing.assert_array_equal(found, plain.sum(axis=0, dtype=np.uint64))
    left = backend.cipher(1, contributions[1:]).decrypt(0, total.copy())
    assert (left != plain.sum(axis=0, dtype=np.uint64)).all()


def test_many_sites_in_one_sum():
    """A pad for each contribution: 200 sites, in a frame of several pieces."""
    federation = federation_of(max_clients=200, min_clients=200)
    site, values = federation.site(), np.random.default_rng(2).uniform(-1, 1, (200, 100))
    aggregator = federation.aggregator(9)
    for number, row in enumerate(values):
        aggregator.add(renamed(site, f"s{number}").encrypt({"w": row}, round=9))
    mean = site.decrypt(aggregator.finish())["w"]
    np.testing.assert_allclose(mean, sum(quantised(row, 1.0, 1.0, 16) for row in values) / 32767 / 200, rtol=1e-13)


# Keys.


def test_keys_are_fresh():
    config = federation_of().config
    keys = [secagg.generate_keys(config).client for _ in range(8)]
    assert len({key.fingerprint for key in keys}) == 8
    roots = [key._root for key in keys]
    assert {len(root) for root in roots} == {32}
    assert np.unique(np.frombuffer(b"".join(roots), np.uint64)).size == 32
    assert not any(words.size for key in keys for words in key.secret_material()[1:3])


def test_a_server_key_holds_no_secret(tmp_path):
    """Neither the object nor its file; the fingerprint, which it does hold, is a hash."""
    keys = federation_of().keys
    root = keys.client._root
    keys.server.save(tmp_path / "server.key")
    data = (tmp_path / "server.key").read_bytes()
    fields = dataclasses.asdict(keys.server)
    assert fields.keys() == {"params", "primes", "plain_modulus", "epoch", "fingerprint"}
    assert (fields["primes"], fields["plain_modulus"]) == ((), 0)
    for place in range(0, 32, 4):
        part = root[place : place + 4]
        for form in (part, part[::-1], part.hex().encode(), str(int.from_bytes(part, "little")).encode()):
            assert form not in data
    assert load_key(tmp_path / "server.key") == keys.server


def test_a_key_file_round_trip(tmp_path):
    federation = federation_of()
    key = federation.keys.client
    key.save(tmp_path / "client.key")
    data = (tmp_path / "client.key").read_bytes()
    assert data.count(key._root) == 1
    assert (tmp_path / "client.key").stat().st_mode & 0o777 == 0o600
    loaded = load_key(tmp_path / "client.key")
    assert loaded.fingerprint == key.fingerprint
    assert loaded.server == key.server
    assert loaded._root == key._root
    assert loaded.secret_material().secret.size == loaded.secret_material().public.size == 0
    aggregate = federation.sum([{"w": np.ones(3)}, {"w": np.zeros(3)}])
    mean = secagg.Client(federation.config, loaded, "late").decrypt(aggregate)["w"]
    np.testing.assert_allclose(mean, 0.5, rtol=1e-14)


@pytest.mark.parametrize("change", [-1, 0, 1], ids=["short", "flipped", "long"])
def test_a_damaged_key_file(change, tmp_path):
    path = tmp_path / "client.key"
    key_of().save(path)
    data = path.read_bytes()
    path.write_bytes({-1: data[:-1], 0: data[:-40] + bytes([data[-40] ^ 1]) + data[-39:], 1: data + b"\0"}[change])
    with pytest.raises(KeyFileError):
        load_key(path)


@pytest.mark.parametrize("epoch", [0, 3])
def test_an_epoch_is_kept(epoch, tmp_path):
    key_of(epoch=epoch).save(tmp_path / "client.key")
    loaded = load_key(tmp_path / "client.key")
    assert loaded.server.epoch == epoch
    np.testing.assert_array_equal(pad(loaded), pad(key_of(epoch=epoch)))


def test_nothing_shows_a_key():
    key = key_of()
    shown = [repr(key), str(key), f"{key}", repr(key.server), repr(KeyPair(key, key.server))]
    backend = FLASHEBackend(PARAMS, key)
    shown += [repr(backend), repr(backend.cipher(0, [Contribution("a", NONCE)]))]
    for form in (str(ROOT), ROOT.hex(), ROOT[:4].hex(), str(int.from_bytes(ROOT, "little"))):
        assert not any(form in text.lower() for text in shown)
    assert shown[0] == f"ClientKey({key.fingerprint[:16]}…)"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="secret"):
            pickle.dumps(key, protocol)


def test_params_of_another_scheme_are_refused():
    params = CKKSParams(2048, (27, 26), 20)
    with pytest.raises(ConfigError, match="'flashe' knows FLASHE, not CKKS"):
        FLASHEBackend(params, key_of())
    with pytest.raises(ConfigError, match="'flashe' knows FLASHE, not CKKS"):
        FLASHEBackend.generate(params)
    ckks = federate("tenseal")
    with pytest.raises(MismatchError, match="the key was made for"):
        secagg.Client(ckks.config, key_of(), "a")


def test_one_key_serves_other_encodings():
    """Bits, rounding and overflow are how values are encoded; the key and its pads do not depend on them."""
    keys = federation_of().keys
    for block in ({"value_bits": 5}, {"value_bits": 24, "overflow": "clip", "error_feedback": True}):
        config = secagg.Config.from_dict({"he": {"lib": "flashe", "config": block}, "aggregation": {"max_abs": 1.0}})
        sites = [secagg.Client(config, keys.client, name) for name in "ab"]
        aggregator = secagg.Aggregator(config, keys.server)
        for site in sites:
            aggregator.add(site.encrypt({"w": np.full(3, 0.5)}))
        mean = sites[0].decrypt(aggregator.finish())["w"]
        assert np.abs(mean - 0.5).max() <= 1 / (2 ** (block["value_bits"] - 1) - 1)


def test_what_the_backend_says_of_itself():
    info = secagg.available_backends()["flashe"]
    assert info.available
    assert info.schemes == ("FLASHE",)
    assert "every update" in info.trust
