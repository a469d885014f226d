"""Project manifests and receipts, put together from docs/wire-format.md, and the parties of the vectors."""

from __future__ import annotations

import datetime
import hashlib
from functools import cache
from typing import Any

from container import DIGEST_NBYTES, PROJECT, Container
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from tail_by_hand import identity, public, receipt_message

#: Who has a signing key: all but the stranger are in the project.
PARTIES = ("authority", "server", "site-1", "site-2", "site-3", "site-4", "stranger")
REVOKED = "site-3"
SERIAL, ISSUED, EXPIRES = 3, 1_700_000_000, 4_000_000_000
#: How many sites were revoked in each manifest before this one.
EARLIER = (0, 0, 1)


def member(name: str) -> dict[str, Any]:
    certificate = server_certificate() if name == "server" else f"secagg vectors certificate {name}".encode()
    digest = hashlib.sha256(certificate).hexdigest()
    return {"certificate": digest, "name": name, "public": public(name), "revoked": name == REVOKED}


@cache
def server_certificate() -> bytes:
    """The server's certificate in DER, which it has signed itself: Ed25519 makes the same bytes each time."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")])
    start, end = (datetime.datetime.fromtimestamp(seconds, datetime.UTC) for seconds in (ISSUED, EXPIRES))
    builder = x509.CertificateBuilder(name, name, identity("server").public_key(), 1, start, end)
    return builder.sign(identity("server"), None).public_bytes(Encoding.DER)


def earlier(serial: int) -> str:
    """The digest of a manifest before this one."""
    return hashlib.sha256(f"secagg vectors manifest {serial}".encode()).hexdigest()


def project(config: dict[str, Any], key: dict[str, Any], layout: list[Any]) -> Container:
    """The signed manifest of a federation with the key of such a header and this layout."""
    header = {
        "authority": public("authority"),
        "config": config,
        "earlier": [[earlier(serial), revoked] for serial, revoked in enumerate(EARLIER)],
        "epoch": key["epoch"],
        "expires": EXPIRES,
        "issued": ISSUED,
        "key": key["fingerprint"],
        "layout": layout,
        "base": None,
        "name": "vectors",
        "serial": SERIAL,
        "server": member("server"),
        "server_certificate": server_certificate().hex(),
        "sites": [member(name) for name in PARTIES if name.startswith("site")],
    }
    return seal(Container(PROJECT, header))


def digest_of(manifest: Container) -> str:
    """What updates name it by."""
    return manifest.head[-DIGEST_NBYTES:].hex()


def seal(container: Container, name: str = "authority") -> Container:
    """Sign a manifest."""
    container.signature = identity(name).sign(container.head)
    return container


def receipt(update: Container, name: str = "server") -> bytes:
    """What the server answers to an update."""
    signature = identity(name).sign(receipt_message(update.head, update.body))
    return update.head[-DIGEST_NBYTES:] + update.body + signature
