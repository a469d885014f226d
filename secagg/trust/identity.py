"""Signatures: Ed25519 (RFC 8032) from the library `cryptography`, one key a party."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NoReturn

from ..errors import KeyFileError, SignatureError
from ..storage.files import Source, name_of, read_source, replace_file
from ..wire.tail import UNSIGNED

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PUBLIC_NBYTES = 32

#: No PEM file of such a key is larger.
_MAX_FILE_NBYTES = 4096


class Identity:
    """What a party signs with: the private key of a site, of the server, or of the provisioner.

    Make one with `generate` or `load`. Its ``repr`` shows the public key only, and it refuses to be pickled.
    """

    __slots__ = ("_key",)

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def generate(cls) -> Identity:
        """Make a new key from the operating system's randomness."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, source: Source) -> Identity:
        """Read a key file.

        Parameters
        ----------
        source : path, bytes, bytearray, memoryview or binary stream
            The file, or what it holds.

        Raises
        ------
        KeyFileError
            If the file is missing or unreadable, or no private Ed25519 key in PEM; if `source` is something else.
        """
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        name, data = name_of(source), read_source(source, _MAX_FILE_NBYTES, KeyFileError, "the signing key")
        try:
            key = load_pem_private_key(data, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise KeyFileError(f"{name} is not a private key in PEM") from None  # the cause could quote the file
        if not isinstance(key, Ed25519PrivateKey):
            raise KeyFileError(f"{name} is not an Ed25519 key, which signatures need")
        return cls(key)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the key as PEM (PKCS 8) with permissions 0600."""
        from cryptography.hazmat.primitives import serialization

        pem = self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        with replace_file(path, 0o600) as file:
            file.write(pem)

    @property
    def public(self) -> bytes:
        """The public key, 32 bytes."""
        return self._key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """Return the signature of a message, 64 bytes."""
        return self._key.sign(message)

    def __repr__(self) -> str:
        return f"Identity({self.public.hex()[:16]}…)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a signing key is secret and is not pickled; use save() and Identity.load()")


def check_signature(public: bytes, signature: bytes, message: bytes, who: str) -> None:
    """Raise `SignatureError` unless `signature` is that of `who`, whose public key is `public`, over `message`."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if signature == UNSIGNED:
        raise SignatureError(f"the signature of {who} is missing")
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        raise SignatureError(f"the signature is not that of {who}") from None
