"""The parties of a federation, and what else its manifest lists, to and from JSON; docs/wire-format.md."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, FormatError, show
from ..scheme.params import is_int
from ..wire.container import DIGEST_NBYTES, read_hex
from ..wire.header import check_site
from .identity import PUBLIC_NBYTES

_PARTY_FIELDS = frozenset(["certificate", "name", "public", "revoked"])

#: Largest number in a manifest: seconds and serials.
MAX_NUMBER = 1 << 53

#: Largest server's certificate in a manifest, in DER: some 200 host names.
MAX_CERTIFICATE_NBYTES = 8 << 10


@dataclass(frozen=True)
class Party:
    """A party of the federation.

    Parameters
    ----------
    name : str
        Name of the site, or of the server.
    public : bytes
        Its Ed25519 public key, 32 bytes.
    certificate : str
        SHA-256 of its TLS certificate (DER), 64 hexadecimal digits.
    revoked : bool
        Whether it takes part no more.
    """

    name: str
    public: bytes
    certificate: str
    revoked: bool = False


@dataclass(frozen=True)
class Earlier:
    """A manifest of the federation before this one.

    Parameters
    ----------
    digest : bytes
        Its `Project.digest`.
    revoked : int
        How many of its sites were revoked.
    """

    digest: bytes
    revoked: int


def read_party(data: Any) -> Party:
    """Return a member of a manifest; `FormatError` if it is none."""
    if not isinstance(data, dict) or data.keys() != _PARTY_FIELDS:
        raise FormatError(f"a member has other keys than {', '.join(sorted(_PARTY_FIELDS))}")
    if not isinstance(data["revoked"], bool):
        raise FormatError(f"revoked is {show(data['revoked'])}, not true or false")
    public, certificate = (
        read_hex(data["public"], PUBLIC_NBYTES, "public"),
        read_hex(data["certificate"], 32, "certificate"),
    )
    return Party(check_site(data["name"]), public, certificate.hex(), data["revoked"])


def party_to_json(party: Party) -> dict[str, Any]:
    """Return the inverse of `read_party`."""
    return {
        "certificate": party.certificate,
        "name": party.name,
        "public": party.public.hex(),
        "revoked": party.revoked,
    }


def read_number(value: object, name: str) -> int:
    """Return a whole number of a manifest; `FormatError` if it is none."""
    if not is_int(value) or not 0 <= value <= MAX_NUMBER:
        raise FormatError(f"{name} is {show(value)}, not a whole number from 0 to 2**53")
    return value


def read_earlier(data: Any) -> tuple[Earlier, ...]:
    """Return the earlier manifests that one lists; `FormatError` if they are none."""
    if not isinstance(data, list) or not all(isinstance(item, list) and len(item) == 2 for item in data):
        raise FormatError("its earlier manifests are no list of [digest, revoked sites]")
    return tuple(
        Earlier(read_hex(digest, DIGEST_NBYTES, "an earlier manifest"), read_number(revoked, "revoked"))
        for digest, revoked in data
    )


def read_certificate(value: object) -> bytes:
    """Return the server's certificate in DER; `FormatError` if it is not hexadecimal."""
    if not isinstance(value, str):
        raise FormatError(f"server_certificate is {show(value)}, neither hexadecimal nor null")
    return read_hex(value, len(value) // 2, "server_certificate")


def check_certificate(certificate: bytes, fingerprint: str) -> None:
    """Raise `ConfigError` unless it is the server's certificate in DER, by its SHA-256."""
    if len(certificate) > MAX_CERTIFICATE_NBYTES:
        raise ConfigError(
            f"the server's certificate has {len(certificate)} bytes, a manifest takes {MAX_CERTIFICATE_NBYTES}: name "
            "fewer hosts"
        )
    found = hashlib.sha256(certificate).hexdigest()
    if found != fingerprint:
        raise ConfigError(f"the server's certificate is {found[:16]}…, the server is listed with {fingerprint[:16]}…")
