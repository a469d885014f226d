"""Every secret of a federation's sites, as `Needles`: what lies in their kits, and what they compute."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from needles import Needles

import secagg_ext
from secagg.scheme.integer_codec import IntegerDecoder, IntegerEncoder
from secagg.setup.provisioner import CA_KEY_FILE
from secagg.trust.identity import Identity
from secagg.trust.key import ClientKey, load_key
from secagg.trust.kit_files import CLIENT_KEY_FILE, IDENTITY_FILE, TLS_KEY_FILE
from secagg.trust.tags import Authenticator
from secagg.wire.header import Contribution
from secagg.wire.tail import TAG_MODULUS

#: What derives from the client key and is public, and what is a number.
NONCE, POINT = b"secagg nonce v1", b"secagg mac point v1"


def add_client_key(needles: Needles, path: Path) -> None:
    """The root of the HE key, and where it has words, these in both orders of their bytes."""
    key = load_key(path)
    assert isinstance(key, ClientKey)
    needles.add("root of the client key", key._root)
    words = key.secret_material().secret
    if words.size:
        needles.add("client key", words.astype("<u8").tobytes())
        needles.add("client key, its words turned", words.astype(">u8").tobytes())


def add_identity(needles: Needles, path: Path, name: str) -> None:
    """The seed of a signing key, and what Ed25519 (RFC 8032) makes of it."""
    seed = Identity.load(path)._key.private_bytes_raw()
    needles.add(f"signing key of {name}", seed)
    needles.add(f"signing key of {name}, hashed", hashlib.sha512(seed).digest())


def private_scalar(path: Path) -> bytes:
    """The secret number of a TLS key, most significant byte first."""
    key = load_pem_private_key(path.read_bytes(), None)
    assert isinstance(key, EllipticCurvePrivateKey)
    return key.private_numbers().private_value.to_bytes(key.key_size // 8, "big")


def add_kits(needles: Needles, kits: Mapping[str, Path], authority: Path) -> None:
    """What lies in the kits of sites, and in the provisioner's folder."""
    for name, kit in kits.items():
        add_client_key(needles, kit / CLIENT_KEY_FILE)
        add_identity(needles, kit / IDENTITY_FILE, name)
        needles.add(f"TLS key of {name}", private_scalar(kit / TLS_KEY_FILE))
    add_identity(needles, authority / IDENTITY_FILE, "the provisioner")
    needles.add("TLS key of the authority", private_scalar(authority / CA_KEY_FILE))


class Computed:
    """What sites compute while `watched`: what derives from the client key, words before they are encrypted."""

    def __init__(self) -> None:
        self.subkeys: set[tuple[bytes, bytes]] = set()
        self.hashes: list[tuple[str, bytes]] = []
        self.numbers: list[tuple[str, int]] = []
        self.words: list[bytes] = []
        self.models: list[bytes] = []
        self._lock = threading.Lock()

    @contextmanager
    def watched(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Computed]:
        """Note what is computed in this process during the block."""
        derive, macs, pads = ClientKey.subkey, secagg_ext.word_macs, Authenticator._pads
        encode, decode = IntegerEncoder.encode, IntegerDecoder.decode

        def note(notes: list[Any], item: Any) -> None:
            with self._lock:
                notes.append(item)

        def subkey(key: ClientKey, purpose: bytes, *fields: bytes) -> bytes:
            derived = derive(key, purpose, *fields)
            with self._lock:
                self.subkeys.add((purpose, derived))
            return derived

        def word_macs(words: Any, moduli: Any, n: int, counts: Any, beta: Any, alpha: Any, state: Any) -> None:
            macs(words, moduli, n, counts, beta, alpha, state)
            for name, secret in (("β of words", beta), ("α of words", alpha), ("elements without pads", state)):
                note(self.hashes, (name, secret.tobytes()))

        def pads_of(own: Authenticator, contribution: Contribution, body: bytes) -> list[int]:
            made = pads(own, contribution, body)
            integers, *words = (pad % modulus for pad, modulus in zip(made, own._moduli, strict=True))
            if own._state.any():  # the tag of no integers is its pad, which stands for nothing else
                note(self.numbers, ("r of integers", integers))
            if words:
                note(self.hashes, ("pads of words", np.array(words, dtype="<u8").tobytes()))
            return made

        def encoded(own: IntegerEncoder, block: int, blocks: int) -> Any:
            words = encode(own, block, blocks)
            note(self.words, words.tobytes())
            return words

        def decoded(own: IntegerDecoder, block: int, words: Any) -> None:
            note(self.words, words.tobytes())
            decode(own, block, words)

        with monkeypatch.context() as patch:
            patch.setattr(ClientKey, "subkey", subkey)
            patch.setattr(secagg_ext, "word_macs", word_macs)
            patch.setattr(Authenticator, "_pads", pads_of)
            patch.setattr(IntegerEncoder, "encode", encoded)
            patch.setattr(IntegerDecoder, "decode", decoded)
            yield self

    def model(self, state: Mapping[str, Any]) -> None:
        """Note a model, of a site or of all."""
        for value in state.values():
            self.models += [value.astype(dtype).tobytes() for dtype in (np.float32, np.float64)]

    def add_to(self, needles: Needles) -> None:
        assert self.subkeys
        assert self.words
        assert self.models
        for purpose, derived in self.subkeys:
            if purpose == NONCE:
                continue
            name = purpose.decode()
            needles.add(name, derived)
            if purpose == POINT:
                needles.add_number("α of integers", int.from_bytes(derived, "little") % TAG_MODULUS)
        for name, number in self.numbers:
            needles.add_number(name, number)
        for name, secret in self.hashes:
            needles.add(name, secret)
        for words in self.words:
            needles.add("packed words", words)
        for model in self.models:
            needles.add("values of a model", model)
