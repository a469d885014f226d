"""Faults of models, project manifests and receipts, one a file."""

from __future__ import annotations

import hashlib
from typing import Any

import model_by_hand
from container import DIGEST_NBYTES, MODEL, UPDATE, Container
from maker import Change, Maker
from project_by_hand import (
    EARLIER,
    EXPIRES,
    ISSUED,
    REVOKED,
    SERIAL,
    digest_of,
    earlier,
    member,
    receipt,
    seal,
    server_certificate,
)
from scheme_faults import drop, put
from tail_by_hand import identity, public, receipt_message, sign
from tail_faults import in_header, resigned, signature, stale, tail_of


def project_faults(maker: Maker) -> None:
    """Add them all."""
    _models(maker)
    _manifest_fields(maker)
    _manifests(maker)
    _receipts(maker)


def _models(maker: Maker) -> None:
    """An empty model for what is found before the first block."""
    model, key = maker.good["signed-model"], maker.good["signed-client-key"]
    secret, plain = model_by_hand.model_key(model.header, key), model_by_hand.decrypt(model, key)
    where = {"reads": "decrypt_model", "config": "signed"}

    def empty(name: str, error: str, fault: str, change: Change) -> None:
        maker.edit(f"model-{name}", error, fault, change, "signed-model-empty", **where)

    def blocks(secret: bytes, first: int = 0) -> Change:
        def change(container: Container) -> None:
            container.payloads = model_by_hand.encrypt(container, secret, plain, first)
            sign(container)

        return change

    def damage(container: Container) -> None:
        payload = container.payloads[0]
        container.payloads = [payload[:-1] + bytes([payload[-1] ^ 1])]

    maker.flip("model-flip", "one bit of the tail", -1, "signed-model-empty", **where)
    for name, fault, change in (
        ("other-key", "encrypted under another key", blocks(bytes(32))),
        ("block", "a block that was encrypted for the place of the next", blocks(secret, 1)),
        ("block-tag", "one bit of a block, the digests fit", resigned(damage)),
        ("other-head", "the blocks of a model with another base", resigned(in_header("base", to="ab" * 32))),
    ):
        maker.edit(f"model-{name}", "DecryptionError", fault, change, "signed-model", **where)
    blob = maker.good.blob("signed-model")
    maker.add("model-cut", "FormatError", "cut before the first block", blob[: len(model.head)], **where)
    maker.add(
        "model-trailing", "FormatError", "a byte too many", maker.good.blob("signed-model-empty") + b"\0", **where
    )
    empty("two-sites", "FormatError", "a model of two sites", in_header("contributions", to=[["a", "ab" * 32]] * 2))
    empty("tag", "FormatError", "a tag", resigned(lambda c: setattr(c, "tags", [1])))
    empty("manifest", "FormatError", "a manifest", resigned(in_header("manifest", to=earlier(0))))
    empty("manifest-missing", "FormatError", "no key for a manifest", resigned(lambda c: c.header.pop("manifest")))
    empty("unsigned", "SignatureError", "no signature", signature(0, lambda _: bytes(64)))
    empty("other-site", "SignatureError", "signed by another site", lambda c: sign(c, "site-2"))
    empty("other-round", "SignatureError", "the signature of a model for another round", stale("round", to=9))
    empty(
        "revoked",
        "IdentityError",
        "from a site that was revoked",
        resigned(in_header("contributions", 0, 0, to=REVOKED)),
    )
    empty("as-update", "FormatError", "a model that says it is an update", lambda c: setattr(c, "kind", UPDATE))
    empty("base", "FormatError", "a base of 31 bytes", resigned(in_header("base", to="ab" * 31)))
    empty("other-key-name", "KeyMismatchError", "another key's fingerprint", resigned(in_header("key", to="ab" * 32)))

    def other_body(container: Container) -> None:
        other = container.copy()
        sign(other)
        body = bytes(DIGEST_NBYTES)
        message = b"secagg update v1" + container.head[-DIGEST_NBYTES:] + body
        site = container.header["contributions"][0][0]
        container.tail = tail_of([], [(body, identity(site).sign(message))])

    empty("body", "DigestError", "the digest of another body, signed", other_body)
    fault = "an update where a model belongs"
    maker.add("model-update", "MismatchError", fault, maker.good.blob("signed-update"), **where)
    fault = "a model where an update belongs"
    maker.add("signed-model", "MismatchError", fault, maker.good.blob("signed-model-empty"), config="signed")
    fault = "an update that says it is a model"
    maker.edit("update-as-model", "FormatError", fault, lambda c: setattr(c, "kind", MODEL))


def _manifest_fields(maker: Maker) -> None:
    """Manifests that say what no manifest can. Their authority has signed them."""

    def bad(name: str, fault: str, change: Change) -> None:
        def sealed(container: Container) -> None:
            change(container.header)
            seal(container)

        where = {"reads": "project", "config": "signed"}
        maker.edit(f"project-{name}", "FormatError", fault, sealed, "signed-project", **where)

    def site(name: str, fault: str, key: str, value: Any) -> None:
        bad(f"site-{name}", fault, put("sites", 0, key, to=value))

    bad("key-missing", "no serial", drop("serial"))
    bad("key-more", "a key that there is not", put("comment", to=""))
    bad("name", "a name with a space", put("name", to="a b"))
    bad("name-number", "a name that is a number", put("name", to=7))
    bad("serial-negative", "the serial is -1", put("serial", to=-1))
    bad("serial-float", "the serial is 4.0", put("serial", to=4.0))
    bad("serial-large", "the serial is 2**53 + 1", put("serial", to=2**53 + 1))
    bad("issued-text", "issued is a text", put("issued", to="2024-01-01"))
    bad("expires-before", "expires when it is issued", put("expires", to=ISSUED))
    bad("expires-large", "expires after 2**53", put("expires", to=2**53 + 1))
    bad("config-text", "the configuration is a text", put("config", to="all"))
    bad("config-more", "a key of the configuration that there is not", put("config", "comment", to=""))
    bad("config-less", "a key of the configuration is left to be planned", drop("config", "he", "config", "rounding"))
    fault = "where scales come from is left to be derived"
    bad("config-precision", fault, drop("config", "aggregation", "precision"))
    bad("config-precision-null", fault, put("config", "aggregation", "precision", to=None))
    bad(
        "config-integer",
        "a whole number where the canonical form has 1.0",
        put("config", "aggregation", "max_abs", to=1),
    )
    bad(
        "config-params", "params beyond 128-bit security", put("config", "he", "config", "coeff_mod_bit_sizes", to=[27])
    )
    bad("epoch", "the epoch is 2**32", put("epoch", to=2**32))
    bad("key-short", "a fingerprint of 31 bytes", put("key", to="ab" * 31))
    bad("key-capitals", "a fingerprint in capitals", put("key", to="AB" * 32))
    bad("authority-short", "an authority of 31 bytes", put("authority", to="ab" * 31))
    bad("base-short", "31 bytes of a base", put("base", to="ab" * 31))
    bad("base-number", "a number as base", put("base", to=0))
    bad("earlier-missing", "no list of earlier manifests", drop("earlier"))
    bad("earlier-null", "null in place of earlier manifests", put("earlier", to=None))
    bad("earlier-text", "an earlier manifest without its revoked sites", put("earlier", 0, to=earlier(0)))
    bad("earlier-more", "an earlier manifest with its serial", put("earlier", 0, to=[earlier(0), 0, 0]))
    bad("earlier-short", "31 bytes of an earlier manifest", put("earlier", 0, 0, to=earlier(0)[:62]))
    bad("earlier-capitals", "an earlier manifest in capitals", put("earlier", 0, 0, to=earlier(0).upper()))
    bad("earlier-negative", "-1 revoked sites", put("earlier", 0, 1, to=-1))
    bad("earlier-float", "1.0 revoked sites", put("earlier", 0, 1, to=1.0))
    bad("layout-list", "a tensor of the layout is a text", put("layout", 0, to="w"))
    bad("layout-dtype", "a dtype that there is not", put("layout", 0, 1, to="float8"))
    bad("server-null", "no server", put("server", to=None))
    bad("server-less", "a server without a certificate", drop("server", "certificate"))
    certificate = server_certificate()
    bad("certificate-missing", "no key for the server's certificate", drop("server_certificate"))
    bad("certificate-number", "a number as the server's certificate", put("server_certificate", to=0))
    bad("certificate-empty", "an empty certificate of the server", put("server_certificate", to=""))
    bad("certificate-odd", "half a byte of it too many", put("server_certificate", to=certificate.hex() + "0"))
    fault = "the server's certificate in capitals"
    bad("certificate-capitals", fault, put("server_certificate", to=certificate.hex().upper()))
    fault = "another certificate than that of the server's digest"
    bad("certificate-other", fault, put("server_certificate", to=certificate[::-1].hex()))
    long = certificate + bytes(8193 - len(certificate))

    def too_long(header: dict[str, Any]) -> None:
        header["server_certificate"] = long.hex()
        header["server"]["certificate"] = hashlib.sha256(long).hexdigest()

    bad("certificate-long", "8 KiB and a byte of the server's certificate", too_long)
    bad("sites-object", "sites that are no list", put("sites", to={}))
    site("name", "a site's name with a slash", "name", "../site")
    site("public", "a public key of 31 bytes", "public", "ab" * 31)
    site("certificate", "a certificate's digest in capitals", "certificate", "AB" * 32)
    site("revoked", "revoked is 0", "revoked", 0)
    site("more", "a key of a member that there is not", "weight", 1)
    site("twice", "a name twice", "name", "site-2")
    site("server", "a site of the server's name", "name", "server")
    site("public-twice", "a public key twice", "public", public("site-2"))
    site("certificate-twice", "a certificate twice", "certificate", member("site-2")["certificate"])


def _manifests(maker: Maker) -> None:
    """Manifests that are not what the reader, who knows the good one, may take in its place."""
    good, where = maker.good["signed-project"], {"reads": "project", "config": "signed"}
    blob, before = good.to_bytes(), good.header["earlier"]
    later = [*before, [digest_of(good), EARLIER[-1]]]

    def bad(name: str, error: str, fault: str, signer: str = "authority", /, **changes: Any) -> None:
        """A later manifest, but for what is changed."""

        def change(container: Container) -> None:
            container.header |= {"serial": SERIAL + 1, "earlier": later} | changes
            seal(container, signer)

        maker.edit(f"project-{name}", error, fault, change, "signed-project", **where)

    sites = good.header["sites"]
    revoked = [site | {"revoked": site["revoked"] or site["name"] == "site-1"} for site in sites]
    maker.add("project-cut", "FormatError", "cut before the last byte", blob[:-1], **where)
    maker.add("project-unsigned", "FormatError", "cut before the signature", blob[:-64], **where)
    maker.add("project-trailing", "FormatError", "a byte too many", blob + b"\0", **where)
    maker.flip("project-flip-head", "one bit of the head", 60, "signed-project", **where)
    fault = "one bit of the signature"
    maker.flip("project-flip-signature", fault, -1, "signed-project", "SignatureError", **where)
    fault = "zeros in the place of the signature"
    maker.edit(
        "project-zeros",
        "SignatureError",
        fault,
        lambda c: setattr(c, "signature", bytes(64)),
        "signed-project",
        **where,
    )
    head = Container(UPDATE, good.header).head
    fault = "a manifest that says it is an update"
    maker.add("project-as-update", "FormatError", fault, head + identity("authority").sign(head), **where)
    fault = "an update where a manifest belongs"
    maker.add("project-update", "FormatError", fault, maker.good.blob("signed-update"), **where)
    bad("other-signer", "SignatureError", "signed by a site, in the authority's name", "site-1")
    fault = "of another authority, which has signed it"
    bad("other-authority", "SignatureError", fault, "stranger", authority=public("stranger"))
    bad("other-name", "SignatureError", "of another project of the same authority", name="other")
    bad("older", "VerificationError", "an earlier serial", serial=SERIAL - 1, earlier=before[:-1])
    fault, same = "another content under the same serial", {"serial": SERIAL, "earlier": before}
    bad("same-serial", "VerificationError", fault, **same, expires=EXPIRES + 1)
    fault = "another manifest before it, under the same serial"
    bad("same-earlier", "VerificationError", fault, serial=SERIAL, earlier=[["ab" * 32, 0], *before[1:]])
    bad("expired", "IdentityError", "expired", expires=ISSUED + 1)
    bad("not-yet", "IdentityError", "issued in a hundred years", issued=EXPIRES - 1)
    bad("other-key", "KeyFileError", "the fingerprint of another key", key="ab" * 32)
    bad("other-epoch", "KeyFileError", "another epoch", epoch=3)
    config = maker.good["signed-project"].header["config"]
    other = {"aggregation": config["aggregation"] | {"max_abs": 0.5}}
    bad("other-config", "MismatchError", "another configuration", config=config | other)
    bad(
        "layout-role",
        "FormatError",
        "a layout that the configuration encrypts otherwise",
        config=config | {"encrypt": "conv"},
    )
    bad("reader-revoked", "IdentityError", "the reader was revoked", sites=revoked)
    bad("reader-missing", "IdentityError", "the reader is not in the list", sites=sites[1:])
    other = [sites[0] | {"public": public("stranger")}, *sites[1:]]
    bad("reader-public", "KeyFileError", "another public key of the reader", sites=other)


def _receipts(maker: Maker) -> None:
    blob, update, other = (
        maker.good.blob("signed-receipt"),
        maker.good["signed-update"],
        maker.good["signed-update-2"],
    )
    head, body = blob[:DIGEST_NBYTES], blob[DIGEST_NBYTES : 2 * DIGEST_NBYTES]

    def bad(name: str, error: str, fault: str, blob: bytes) -> None:
        maker.add(f"receipt-{name}", error, fault, blob, reads="receipt", config="signed")

    def signed(head: bytes, body: bytes, message: bytes) -> bytes:
        return head + body + identity("server").sign(message)

    bad("empty", "FormatError", "no byte at all", b"")
    bad("cut", "FormatError", "cut before the last byte", blob[:-1])
    bad("trailing", "FormatError", "a byte too many", blob + b"\0")
    for name, place in (("head", 0), ("body", 32), ("signature", 127)):
        flipped = bytearray(blob)
        flipped[place] ^= 1
        bad(f"flip-{name}", "SignatureError", f"one bit: {name}", bytes(flipped))
    bad("unsigned", "SignatureError", "zeros in the place of the signature", blob[:64] + bytes(64))
    bad("site", "SignatureError", "signed by a site", receipt(update, "site-2"))
    bad(
        "purpose",
        "SignatureError",
        "the server's signature for another purpose",
        signed(head, body, b"secagg update v1" + head + body),
    )
    bad("other-update", "VerificationError", "for another update", receipt(other))
    theirs = other.body
    bad("other-body", "VerificationError", "for another body", signed(head, theirs, receipt_message(head, theirs)))
    theirs = other.head[-DIGEST_NBYTES:]
    bad("other-head", "VerificationError", "for another head", signed(theirs, body, receipt_message(theirs, body)))
