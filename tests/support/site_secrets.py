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

from secagg.setup.provisioner import CA_KEY_FILE
from secagg.trust.identity import Identity
from secagg.trust.key import ClientKey, load_key
from secagg.trust.kit_files import CLIENT_KEY_FILE, IDENTITY_FILE, TLS_KEY_FILE
from secagg.trust.tags import Authenticator
from secagg.wire.tail import TAG_MODULUS


def add_client_key(needles: Needles, path: Path) -> None:
    """The words of the HE key, in both orders of their bytes."""
    key = load_key(path)
    assert isinstance(key, ClientKey)
    words = key.secret_material().secret
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
    """What sites compute while `watched`: keys that derive from the client key, words before they are encrypted."""

    def __init__(self) -> None:
        self.subkeys: set[tuple[bytes, bytes]] = set()
        self.words: list[bytes] = []
        self.models: list[bytes] = []
        self._lock = threading.Lock()

    @contextmanager
    def watched(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Computed]:
        """Note what is computed in this process during the block."""
        derive, authenticate = ClientKey.subkey, Authenticator.add

        def subkey(key: ClientKey, purpose: bytes, *fields: bytes) -> bytes:
            derived = derive(key, purpose, *fields)
            with self._lock:
                self.subkeys.add((purpose, derived))
            return derived

        def add(own: Authenticator, words: Any, *, signed: bool = False) -> None:
            with self._lock:
                self.words.append(words.tobytes())
            authenticate(own, words, signed=signed)

        with monkeypatch.context() as patch:
            patch.setattr(ClientKey, "subkey", subkey)
            patch.setattr(Authenticator, "add", add)
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
            name = purpose.decode()
            needles.add(name, derived)
            if "mac" in name:  # α and r
                needles.add_number(f"{name}, modulo p", int.from_bytes(derived, "little") % TAG_MODULUS)
        for words in self.words:
            needles.add("packed words", words)
        for model in self.models:
            needles.add("values of a model", model)
