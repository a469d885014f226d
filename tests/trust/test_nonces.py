"""Hedged nonces: where randomness comes twice, a nonce comes twice for the very same update only."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import struct
from contextlib import suppress
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from federation import LATTICE, TINY, TINY_AGGREGATION, VARIANTS, federate, is_symmetric, random_states
from signed import Parts, ring_of, sign_federation

import secagg
from secagg import Update
from secagg.errors import DecryptionError, ImplausibleSumError
from secagg.trust.key import ClientKey
from secagg.trust.nonces import NO_NONCE
from secagg.trust.tags import Authenticator, tag_moduli

STATE = {"w": np.linspace(-1, 1, 9), "v": np.float32([[0.25, -0.5]]), "c": np.array([0.5, 0.75])}
ENCRYPT = {"exclude": ["c"]}
RANDOM = bytes(range(32))


@pytest.fixture
def federation(lib):
    return federate(lib, encrypt=ENCRYPT)


@pytest.fixture
def snapshot(monkeypatch):
    """A machine that was restored, and draws the same again."""
    monkeypatch.setattr(secrets, "token_bytes", lambda count: RANDOM[:count])
    monkeypatch.setattr(secrets, "randbits", lambda count: 7)


def nonce_of(site, state=STATE, weight=1.0, round=3, **arguments):
    return site.encrypt(state, weight, round, **arguments).nonce


def with_value(name, place, value):
    changed = {tensor: array.copy() for tensor, array in STATE.items()}
    changed[name].flat[place] = value
    return changed


def test_they_are_fresh(federation):
    """Each time, for the very same update too."""
    site, stream = federation.site(), BytesIO()
    found = {nonce_of(site) for _ in range(20)}
    for _ in range(20):
        stream.seek(0)
        site.encrypt_model(stream, STATE, round=3)
        found.add(Update.from_bytes(stream.getvalue()).nonce)
    assert len(found) == 40
    assert {len(nonce) for nonce in found} == {32}
    assert NO_NONCE not in found


@pytest.mark.usefixtures("snapshot")
def test_the_very_same_update_has_the_same(federation):
    """From another client, or a copy of the tensors."""
    copied = {name: array.copy() for name, array in STATE.items()}
    assert nonce_of(federation.site()) == nonce_of(federation.site(), copied) == nonce_of(federation.site())


CHANGES = {
    "the last bit of a value": {"state": with_value("w", 4, np.nextafter(0.0, 1.0))},
    "a value": {"state": with_value("w", 8, 0.5)},
    "a value of another tensor": {"state": with_value("v", 1, -0.25)},
    "a value in the clear": {"state": with_value("c", 0, 0.25)},
    "zero has another sign": {"state": with_value("w", 4, -0.0)},
    "two values swapped": {"state": with_value("w", [0, 8], [1.0, -1.0])},
    "weight": {"weight": 0.5},
    "the last bit of the weight": {"weight": float(np.nextafter(1.0, 0.0))},
    "round": {"round": 4},
    "base": {"base": bytes(32)},
    "another base": {"base": bytes(31) + b"\1"},
    "shape": {"state": STATE | {"w": STATE["w"].reshape(3, 3)}},
    "dtype": {"state": STATE | {"v": STATE["v"].astype(np.float64)}},
    "name": {"state": {"u" if name == "w" else name: array for name, array in STATE.items()}},
    "order": {"state": dict(sorted(STATE.items(), key=lambda item: item[0] != "v"))},
    "a value goes to the next tensor": {
        "state": STATE | {"w": STATE["w"][:-1], "v": np.concatenate([STATE["w"][-1:], STATE["v"][0]]).astype("f4")}
    },
}


@pytest.mark.usefixtures("snapshot")
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_another_update_has_another(federation, change):
    assert nonce_of(federation.site(), **change) != nonce_of(federation.site())


@pytest.mark.usefixtures("snapshot")
def test_no_two_updates_share_one(federation):
    found = [nonce_of(federation.site(), **change) for change in CHANGES.values()]
    found += [nonce_of(federation.site()), nonce_of(federation.site("site-2"))]
    assert len(set(found)) == len(CHANGES) + 2


@pytest.mark.usefixtures("snapshot")
def test_what_is_configured_counts(federation):
    """Scales and projects are in the header."""
    signed = sign_federation(federation)
    found = {
        nonce_of(site)
        for site in (
            federation.site(),
            federation.but(max_abs={"default": 1.0, "v": 0.5}).site(),
            federation.but(max_weight=2.0).site(),
            federation.but(max_clients=3).site(),
            federation.but(encrypt="all").site(),
            signed.site(),
            signed.site(project=signed.without("site-3")),
        )
    }
    assert len(found) == 7


@pytest.mark.parametrize("variant", ["flashe", "seal-BGV"])
def test_the_seed_of_rounding_counts(variant, snapshot, monkeypatch):
    """One value rounded up and down under one pad would show by how much it was rounded."""
    found = []
    for seed in (7, 7, 8, 2**64 - 1):
        monkeypatch.setattr(secrets, "randbits", lambda count, seed=seed: seed)
        found.append(nonce_of(federate(variant).site(), {"w": STATE["w"]}))
    assert found[0] == found[1]
    assert len(set(found)) == 3


@pytest.mark.usefixtures("snapshot")
@pytest.mark.parametrize("variant", ["flashe", "seal-BGV"])
def test_what_is_carried_counts(variant):
    """The same values and weight of the same round, and another residual of one value."""
    params = {"value_bits": 8, "rounding": "nearest", "error_feedback": True}
    federation = federate(variant, params, max_abs=1.0, max_clients=4)
    first, state = random_states(2, {"w": (50,)})
    other = {"w": first["w"].copy()}
    other["w"][7] += np.float32(2.0**-10)
    found = []
    for before in (first, first, other):
        site = federation.site()
        assert site.encrypt(before, round=0)
        found.append(nonce_of(site, state, round=1))
    assert found[0] == found[1] != found[2]


@pytest.mark.usefixtures("snapshot")
def test_pads_are_not_shared_where_randomness_is():
    """The difference of two updates of FLASHE under one pad would be that of their integers, in the open."""
    federation = federate("flashe")
    values = np.linspace(-1, 1, 9000)
    changed = values.copy()
    changed[17] = 0.123
    one, again, other = (federation.site().encrypt({"w": each}) for each in (values, values, changed))
    assert one.to_bytes() == again.to_bytes()
    words = [np.concatenate([np.frombuffer(p, "<u8") for _, p in update.frames()]) for update in (one, other)]
    assert (words[0] != words[1]).all()
    difference = words[0] - words[1]
    assert np.unique(difference).size == difference.size
    assert one.tail.tags != other.tail.tags


@pytest.mark.usefixtures("snapshot")
@pytest.mark.parametrize("variant", ["seal", "tenseal", "seal-BGV"])
def test_seeds_are_not_shared_where_randomness_is(variant):
    federation = federate(variant)
    assert federation.config.params.seeded
    found = {nonce_of(federation.site(), state) for state in (STATE, with_value("w", 0, 0.0))}
    assert len(found) == 2


# Lattice schemes: what the HE library draws differs, though the nonce is the same.


class Restored:
    """A sum, and two encryptions of the very same values that a restored machine has made, one of them in the sum."""

    def __init__(self, variant, seeded):
        params = {"CKKS": TINY | {"seeded": seeded}, "BGV": {"value_bits": 8, "seeded": seeded}}
        self.federation = federate(variant, params, encrypt=ENCRYPT, **TINY_AGGREGATION)
        self.ring = ring_of(self.federation, "encrypted")
        self.states = random_states(2, {"w": (self.federation.codec.block_values + 9,), "c": (5,)}, largest=0.1)
        self.one, self.again = (self.federation.site().encrypt(self.states[0]) for _ in range(2))
        self.sum = self.federation.add([self.one, self.federation.site("site-2").encrypt(self.states[1])])

    def words(self, update):
        payload = Parts.of(update).payloads[0]
        words = self.ring.from_bytes(memoryview(payload)).astype(object)
        return words.reshape(-1, len(self.ring.moduli), self.ring.degree)

    def forged(self, factor):
        """The sum and a multiple of the difference, of words as of tags: the same values but for some noise."""
        words = self.words(self.sum) + factor * (self.words(self.one) - self.words(self.again))
        words %= np.array(self.ring.moduli, object)[:, None]
        moduli = tag_moduli(self.federation.keys.server)
        columns = zip(moduli, *(update.tail.tags for update in (self.sum, self.one, self.again)), strict=True)
        parts = Parts.of(self.sum)
        parts.payloads[0] = self.ring.to_bytes(words.astype(np.uint64).reshape(-1)).tobytes()
        parts.tags = tuple((tag + factor * (one - again)) % modulus for modulus, tag, one, again in columns)
        return parts.build()


restored = pytest.mark.parametrize(
    ("variant", "seeded"),
    [
        pytest.param(variant, seeded, id=f"{variant}-{'seeded' if seeded else 'whole'}")
        for variant in LATTICE
        for seeded in (False, True)
        if not seeded or is_symmetric(VARIANTS[variant][0])
    ],
)


@pytest.mark.usefixtures("snapshot")
@restored
def test_pads_of_tags_are_not_shared_where_nonces_are(variant, seeded, monkeypatch):
    """Else the tags' difference would be that of the words, under no pad, and any multiple of both could be added."""
    scene = Restored(variant, seeded)
    assert scene.one.nonce == scene.again.nonce
    assert (scene.words(scene.one) != scene.words(scene.again)).any()
    key, header = scene.federation.keys.client, scene.one.header
    assert header == scene.again.header
    pads = [
        Authenticator(key, header)._pads(*header.contributions, update.tail.proofs[0].body)
        for update in (scene.one, scene.again)
    ]
    moduli = tag_moduli(key.server)
    assert all(one % q != again % q for one, again, q in zip(*pads, moduli, strict=True))
    blocks, genuine = [], scene.federation.backend.decrypt
    monkeypatch.setattr(scene.federation.backend, "decrypt", lambda *given: blocks.append(1) or genuine(*given))
    for factor in (1, -1, 3, 1000):
        with pytest.raises(DecryptionError) as caught:
            scene.federation.site().decrypt(scene.forged(factor))
        assert caught.value.args == DecryptionError().args
    assert not blocks
    scene.federation.assert_mean(scene.federation.site().decrypt(scene.forged(0)), scene.states)
    assert len(blocks) == len(scene.words(scene.sum)) == 2


@pytest.mark.usefixtures("snapshot")
@restored
def test_under_one_pad_a_forgery_would_fit(variant, seeded, monkeypatch):
    """What the digest of the body is for."""
    genuine = Authenticator._pads
    monkeypatch.setattr(Authenticator, "_pads", lambda self, contribution, body: genuine(self, contribution, b""))
    scene = Restored(variant, seeded)
    forged = scene.forged(3)
    assert Parts.of(forged).payloads[0] != Parts.of(scene.sum).payloads[0]
    with suppress(ImplausibleSumError):  # which is raised after all tags have fitted: now and then of its weight
        scene.federation.site().decrypt(forged)


def model_nonce(site, state=STATE, round=3, base=None):
    stream = BytesIO()
    site.encrypt_model(stream, state, round=round, base=base)
    return Update.from_bytes(stream.getvalue()).nonce


@pytest.mark.usefixtures("snapshot")
def test_models_too():
    """Their nonces stand for keys of AES-GCM, whose own nonces are numbers of blocks."""
    federation = federate("flashe", encrypt=ENCRYPT)
    site = federation.site()
    assert model_nonce(site) == model_nonce(federation.site(), {name: value.copy() for name, value in STATE.items()})
    changes = {name: change for name, change in CHANGES.items() if "weight" not in change}
    found = [model_nonce(site, **change) for change in changes.values()]
    found += [model_nonce(site), model_nonce(federation.site("site-2")), nonce_of(site)]
    assert len(set(found)) == len(changes) + 3


@pytest.mark.usefixtures("snapshot")
def test_one_tells_nothing_of_values(federation, monkeypatch):
    """It is a function of the secret root: who has none cannot try values. Nothing but the root differs here."""
    monkeypatch.setattr("secagg.trust.key._fingerprint", lambda *_: "ab" * 32)
    key = federation.keys.client
    found = []
    for root in (key._root, key._root, bytes(32)):
        other = ClientKey(key.params, key.secret_material(), root)
        found.append(nonce_of(secagg.Client(federation.config, other, "site-1")))
    assert found[0] == found[1] != found[2]


def test_randomness_still_counts(federation, snapshot, monkeypatch):
    found = {nonce_of(federation.site())}
    monkeypatch.setattr(secrets, "token_bytes", lambda count: bytes(count))
    found.add(nonce_of(federation.site()))
    assert len(found) == 2


@pytest.mark.usefixtures("snapshot")
def test_a_nonce_is_as_documented():
    """HKDF of randomness, content, site and round, by the fields of docs/wire-format.md."""
    federation = federate("flashe", encrypt=ENCRYPT)
    key, update = federation.keys.client, federation.site().encrypt(STATE, 0.5, 3)
    draft = replace(update.header, contributions=(replace(update.header.contributions[0], nonce=bytes(32)),))
    parts = [draft.head[-32:], struct.pack("<dQ", 0.5, 7), *(STATE[name].tobytes() for name in ("w", "v", "c"))]

    def derived(purpose, *fields):
        fields = [purpose, bytes.fromhex(key.fingerprint), bytes(8), *fields]
        info = b"".join(len(field).to_bytes(4, "little") + field for field in fields)
        extracted = hmac.digest(bytes(32), key._root, hashlib.sha256)
        return hmac.digest(extracted, info + b"\1", hashlib.sha256)

    content = AESGCM(derived(b"secagg nonce content v1")).encrypt(bytes(12), b"", b"".join(parts))
    assert len(content) == 16
    assert update.nonce == derived(b"secagg nonce v1", RANDOM, content, b"site-1", (3).to_bytes(8, "little"))


@pytest.mark.usefixtures("snapshot")
def test_large_tensors_are_read_to_their_end():
    """More than a piece of content at a time, and no number of pieces."""
    federation = federate("flashe")
    state = {"w": np.ones((1 << 18) + 3)}
    found = {nonce_of(federation.site(), state)}
    for place in (0, (1 << 17) - 1, 1 << 17, (1 << 18) + 2):
        state["w"][place] = 1 - 2.0**-30
        found.add(nonce_of(federation.site(), state))
        state["w"][place] = 1
    assert len(found) == 5
