"""Signing keys: their files, what they sign, what they show, and every signature that is none."""

from __future__ import annotations

import copy
import os
import pickle
import re
import stat

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa, x25519
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from federation import federate
from hypothesis import given
from hypothesis import strategies as st
from signed import sign_federation

from secagg import Identity
from secagg.errors import KeyFileError, SignatureError, StorageError
from secagg.trust.identity import check_signature
from secagg.wire.tail import UNSIGNED

#: RFC 8032, section 7.1, tests 1 to 3: secret, public, message, signature.
RFC_8032 = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
        "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
        "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
]
ORDER = 2**252 + 27742317777372353535851937790883648493

IDENTITY = Identity.generate()


@pytest.mark.parametrize(("secret", "public", "message", "signature"), RFC_8032)
def test_signatures_of_rfc_8032(secret, public, message, signature):
    identity = Identity(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(secret)))
    assert identity.public.hex() == public
    assert identity.sign(bytes.fromhex(message)).hex() == signature
    check_signature(identity.public, bytes.fromhex(signature), bytes.fromhex(message), "somebody")


def test_keys_are_fresh():
    assert len({Identity.generate().public for _ in range(50)}) == 50


def test_file(tmp_path):
    path = tmp_path / "signing.pem"
    IDENTITY.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Identity.load(path).public == IDENTITY.public
    assert Identity.load(str(path)).sign(b"m") == IDENTITY.sign(b"m")  # signatures are deterministic
    pem = path.read_bytes()
    assert pem.startswith(b"-----BEGIN PRIVATE KEY-----")
    IDENTITY.save(path)  # over itself
    assert path.read_bytes() == pem
    assert os.listdir(tmp_path) == [path.name]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(StorageError, match="signing.pem"):
        IDENTITY.save(tmp_path / "nowhere" / "signing.pem")


def pem_of(key, password=None) -> bytes:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def own_pem() -> bytes:
    return pem_of(IDENTITY._key)


BAD_FILES = {
    "empty": lambda: b"",
    "no PEM": lambda: b"key",
    "cut": lambda: own_pem()[:60],
    "DER": lambda: IDENTITY._key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ),
    "raw": IDENTITY._key.private_bytes_raw,
    "a public key": lambda: IDENTITY._key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ),
    "encrypted": lambda: pem_of(Ed25519PrivateKey.generate(), b"passphrase"),
    "P-256": lambda: pem_of(ec.generate_private_key(ec.SECP256R1())),
    "RSA": lambda: pem_of(rsa.generate_private_key(65537, 2048)),
    "Ed448": lambda: pem_of(ed448.Ed448PrivateKey.generate()),
    "X25519": lambda: pem_of(x25519.X25519PrivateKey.generate()),
    "large": lambda: b"-----BEGIN PRIVATE KEY-----\n" + b"A" * 10_000_000,
    "rubbish in it": lambda: own_pem().replace(b"M", b"!", 1),
    "binary": lambda: bytes(range(256)) * 10,
}


@pytest.mark.parametrize("content", BAD_FILES.values(), ids=BAD_FILES)
def test_a_file_of_something_else(content, tmp_path):
    path = tmp_path / "signing.pem"
    path.write_bytes(content())
    with pytest.raises(KeyFileError, match=re.escape(str(path))) as caught:
        Identity.load(path)
    assert caught.value.__cause__ is None  # a library's message could quote the file


@pytest.mark.parametrize("kind", ["nothing", "a folder", "a pipe", "a NUL"])
def test_what_is_no_file(kind, tmp_path):
    path = tmp_path / "signing.pem"
    if kind == "a folder":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a NUL":
        path = f"{path}\0"
    with pytest.raises(KeyFileError, match="cannot read the signing key"):
        Identity.load(path)


def test_it_shows_no_secret(tmp_path):
    secret = IDENTITY._key.private_bytes_raw()
    text = f"{IDENTITY!r} {IDENTITY} {[IDENTITY]}"
    assert IDENTITY.public.hex()[:16] in text
    assert secret.hex()[:8] not in text
    assert not hasattr(IDENTITY, "__dict__")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="is secret and is not pickled"):
            pickle.dumps(IDENTITY, protocol)
    for copier in (copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="is secret"):
            copier(IDENTITY)


# Signatures that are none.

messages = st.binary(max_size=200)


@given(messages, st.data())
def test_another_message_or_another_signature(message, data):
    signature = IDENTITY.sign(message)
    check_signature(IDENTITY.public, signature, message, "site 'site-1'")
    bit = data.draw(st.integers(0, 8 * 64 - 1))
    changed = bytearray(signature)
    changed[bit // 8] ^= 1 << bit % 8
    other = data.draw(messages.filter(lambda it: it != message))
    for bad in ((bytes(changed), message), (signature, other)):
        with pytest.raises(SignatureError, match="the signature is not that of site 'site-1'"):
            check_signature(IDENTITY.public, *bad, "site 'site-1'")


def test_another_key():
    with pytest.raises(SignatureError, match="not that of"):
        check_signature(Identity.generate().public, IDENTITY.sign(b"m"), b"m", "somebody")


def test_no_signature():
    with pytest.raises(SignatureError, match="the signature of somebody is missing"):
        check_signature(IDENTITY.public, UNSIGNED, b"m", "somebody")


def test_a_signature_has_one_form():
    """RFC 8032, 5.1.7: s must be below the order, or everybody could make another signature from one."""
    signature = IDENTITY.sign(b"m")
    s = int.from_bytes(signature[32:], "little") + ORDER
    assert s < 2**256
    with pytest.raises(SignatureError):
        check_signature(IDENTITY.public, signature[:32] + s.to_bytes(32, "little"), b"m", "somebody")


#: Points of small order (of 1, 2, 4 and 8), and encodings of none: under the former, a signature can fit any message.
WEAK = [
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "ff" * 32,
]


@pytest.mark.parametrize("public", WEAK)
def test_a_signature_of_zeros_fits_no_key(public):
    """What stands for no signature is never taken for one."""
    Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))  # the library takes it for a key
    with pytest.raises(SignatureError):
        check_signature(bytes.fromhex(public), UNSIGNED, b"m", "somebody")


@pytest.mark.parametrize("signature", [b"", b"\1", bytes(63) + b"", b"\1" * 65, b"\1" * 1000])
def test_another_length(signature):
    with pytest.raises(SignatureError):
        check_signature(IDENTITY.public, signature, b"m", "somebody")


@pytest.mark.parametrize("public", [b"", bytes(31), bytes(33)])
def test_a_public_key_of_another_length(public):
    with pytest.raises(SignatureError):
        check_signature(public, IDENTITY.sign(b"m"), b"m", "somebody")


def test_a_client_shows_none_of_its_keys():
    """Neither the signing key nor the HE key, in whatever way somebody looks at the object."""
    signed = sign_federation(federate("flashe"))
    site = signed.site()
    secrets = [
        signed.identities["site-1"]._key.private_bytes_raw(),
        signed.federation.keys.client._root,
    ]
    text = f"{site!r} {site} {vars(site)} {signed.project}"
    for secret in secrets:
        assert bytes(secret).hex()[:16] not in text
        assert repr(bytes(secret))[2:20] not in text
    with pytest.raises(TypeError):
        pickle.dumps(site)
