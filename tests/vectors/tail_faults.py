"""Faults of bases, tails, signatures and lists of contributions, one a file."""

from __future__ import annotations

from typing import Any

from container import (
    DIGEST_NBYTES,
    PRIME,
    TAG_NBYTES,
    Container,
    frame_digest,
    pack_tags,
)
from maker import Change, Maker
from project_by_hand import REVOKED, earlier
from scheme_faults import put
from tail_by_hand import identity, malleable, sign

NONE = bytes(64)


def tail_faults(maker: Maker) -> None:
    """Add them all."""
    _digests(maker)
    _tails(maker)
    _signatures(maker)
    _projects(maker)
    _contributions(maker)


def _digests(maker: Maker) -> None:
    """What a header names by a digest or null: the base and the manifest."""
    for key in ("base", "manifest"):
        maker.header(f"{key}-missing", "FormatError", f"no {key}", lambda header, key=key: header.pop(key))
        for name, value, fault in (
            ("short", "ab" * 31, "31 bytes"),
            ("long", "ab" * 33, "33 bytes"),
            ("capitals", "AB" * 32, "in capitals"),
            ("letters", "xy" * 32, "not hexadecimal"),
            ("number", 0, "a number"),
            ("empty", "", "empty, where the canonical form has null"),
        ):
            maker.header(f"{key}-{name}", "FormatError", f"the {key}: {fault}", put(key, to=value))
    fault = "a base where the first update of the round has none"
    maker.header("other-base", "MismatchError", fault, put("base", to="ab" * 32))
    fault = "a manifest where the first update of the round has none"
    maker.header("other-manifest", "ManifestMismatchError", fault, put("manifest", to="ab" * 32))


def _tails(maker: Maker) -> None:
    """Tails that were cut or changed. Nobody has signed them."""
    blob, update = maker.good.blob("update"), maker.good["update"]
    tail, tags = len(blob) - update.tail_nbytes, len(pack_tags(update.tags))
    maker.add("cut-tail", "FormatError", "cut before the tail", blob[:tail])
    maker.add("cut-tag", "FormatError", "cut behind the tag of integers", blob[: tail + TAG_NBYTES])
    maker.add("cut-tags", "FormatError", "cut behind the tags", blob[: tail + tags])
    maker.add("cut-tail-digest", "FormatError", "cut before the last byte", blob[:-1])
    for name, place in (
        ("tag", 0),
        ("word-tag", TAG_NBYTES),
        ("body", tags),
        ("signature", tags + 32),
        ("digest", update.tail_nbytes - 1),
    ):
        maker.flip(f"flip-tail-{name}", f"one bit of the tail: {name}", tail + place)
    digest = frame_digest(update.head[-DIGEST_NBYTES:], 0, blob[tail:-DIGEST_NBYTES])
    fault = "the tail's digest has the place of the first frame"
    maker.add("tail-index", "DigestError", fault, blob[:-DIGEST_NBYTES] + digest)
    maker.edit("tags-less", "FormatError", "a tag too few", lambda c: c.tags.pop())
    maker.edit("tags-more", "FormatError", "a tag too many", lambda c: c.tags.append(0))
    maker.edit("tags-none", "FormatError", "no tags of ciphertext words", lambda c: setattr(c, "tags", c.tags[:1]))
    fault = "a tag of ciphertext words, which FLASHE has not"
    maker.edit("flashe-tags-more", "FormatError", fault, lambda c: c.tags.append(0), "flashe-update", config="flashe")
    prime = maker.good["server-key"].header["primes"][0]
    for name, place, value, fault in (
        ("first", 1, prime, "the first tag of ciphertext words is the prime"),
        ("last", -1, prime + 1, "the last tag is the prime and 1"),
        ("ones", 3, 2**64 - 1, "a tag of ciphertext words of ones"),
    ):
        change = lambda c, place=place, value=value: c.tags.__setitem__(place, value)  # noqa: E731
        maker.edit(f"word-tag-{name}", "FormatError", fault, change)

    def other_body(container: Container) -> None:
        container.tail = tail_of(container.tags, [(maker.good["update-2"].body, NONE)])

    maker.edit("body-other", "DigestError", "the digest of another body", other_body)
    proofs = lambda count: lambda c: setattr(c, "tail", tail_of(c.tags, [(c.body, NONE)] * count))  # noqa: E731
    maker.edit("proof-none", "FormatError", "no proof", proofs(0))
    maker.edit("proof-more", "FormatError", "a proof too many", proofs(2))


def _signatures(maker: Maker) -> None:
    """Updates of a project that wants signatures. What is not signed by another is signed as it stands."""

    def bad(name: str, error: str, fault: str, change: Change) -> None:
        maker.edit(f"signed-{name}", error, fault, change, "signed-update", config="signed")

    def signed_by(name: str) -> Change:
        return lambda container: sign(container, name)

    bad("unsigned", "SignatureError", "zeros in the place of the signature", signature(0, lambda _: NONE))
    bad("other-site", "SignatureError", "signed by another site", signed_by("site-2"))
    bad("server", "SignatureError", "signed by the server", signed_by("server"))
    bad("stranger-key", "SignatureError", "signed by nobody in the project", signed_by("stranger"))
    fault = "the same site's signature of its update of another round"
    bad("other-update", "SignatureError", fault, stale("round", to=8))
    fault = "the signature of the same update for another base"
    bad("other-base-signature", "SignatureError", fault, stale("base", to="ab" * 32))
    bad("signature-flip", "SignatureError", "one bit of the signature, the digests fit", signature(0, flipped))
    fault = "S + L in place of S: another form of the same signature"
    bad("signature-malleable", "SignatureError", fault, signature(0, malleable))
    fault = "a signature over head and body without the purpose"
    bad("signature-purpose", "SignatureError", fault, without_purpose)
    bad("stranger", "IdentityError", "from a site that is not in the project", resigned(named(0, "stranger")))
    bad("revoked", "IdentityError", "from a site that was revoked", resigned(named(0, REVOKED)))
    bad("base", "MismatchError", "another base than that of the round", resigned(in_header("base", to="ab" * 32)))
    bad("base-null", "MismatchError", "no base where the round has one", resigned(in_header("base", to=None)))
    for name, tag, fault in (("modulus", PRIME, "the tag is the modulus"), ("bits", 2**128 - 1, "a tag of ones")):
        bad(f"tag-{name}", "FormatError", fault, resigned(lambda c, tag=tag: c.tags.__setitem__(0, tag)))


def _projects(maker: Maker) -> None:
    """Updates and aggregates under manifests that are not the reader's. Their sites have signed them."""
    for name, digest, fault in (
        ("other", "ab" * 32, "a manifest that the reader does not know"),
        ("null", None, "no manifest"),
    ):
        change = resigned(in_header("manifest", to=digest))
        error, where = "ManifestMismatchError", {"config": "signed"}
        maker.edit(f"signed-manifest-{name}", error, fault, change, "signed-update", **where)
        where |= {"reads": "decrypt"}
        maker.edit(f"signed-aggregate-manifest-{name}", error, fault, change, "signed-aggregate", **where)
    fault, change = "the manifest before that of the round", resigned(in_header("manifest", to=earlier(2)))
    maker.edit("signed-manifest-earlier", error, fault, change, "signed-update", config="signed")
    fault = "the signature of an update under the manifest before"
    change = stale("manifest", to=earlier(2))
    maker.edit("signed-manifest-signature", "SignatureError", fault, change, "signed-update", config="signed")
    fault = "signatures of updates under the manifest before"
    change = stale("manifest", to=earlier(2))
    name, where = "signed-aggregate-manifest-signature", {"reads": "decrypt", "config": "signed"}
    maker.edit(name, "SignatureError", fault, change, "signed-aggregate", **where)


def _contributions(maker: Maker) -> None:
    """Lists of contributions that are not what the reader knows of the round. What it signs, each site has signed."""
    listed = maker.good["signed-aggregate"].header["contributions"]
    mine = [site for site, _ in listed].index("site-1")
    theirs = 1 - mine

    def bad(name: str, error: str, fault: str, change: Change) -> None:
        source = "signed-aggregate"
        maker.edit(f"signed-aggregate-{name}", error, fault, change, source, reads="decrypt", config="signed")

    def proofs(change: Any) -> Change:
        return lambda container: setattr(container, "tail", tail_of(container.tags, change(container.proofs)))

    bad("round", "RoundMismatchError", "the round before", resigned(in_header("round", to=6)))
    bad("base", "VerificationError", "another base", resigned(in_header("base", to="ab" * 32)))
    bad("base-null", "VerificationError", "no base", resigned(in_header("base", to=None)))
    fault = "the update that the reader has a receipt for is not in the list, another of its site is"
    bad("receipt", "VerificationError", fault, resigned(put_contribution(mine, 1, "ab" * 32)))
    fault = "another body than that of the receipt"
    bad("receipt-body", "VerificationError", fault, resigned(body(mine, bytes(32))))
    bad("proof-less", "FormatError", "a proof too few", proofs(lambda items: items[:-1]))
    bad("proof-more", "FormatError", "a proof too many", proofs(lambda items: [*items, items[0]]))
    bad("proofs-same", "SignatureError", "the proof of one site for both", proofs(lambda items: [items[mine]] * 2))
    bad("unsigned", "SignatureError", "no signature of one site", signature(theirs, lambda _: NONE))
    bad("signature-flip", "SignatureError", "one bit of a signature", signature(theirs, flipped))
    bad("body", "SignatureError", "another body digest of one site", body(theirs, bytes(32)))
    bad("relabelled", "SignatureError", "one site relabelled as another of the project", named(theirs, "site-4"))
    bad("stranger", "IdentityError", "one site that is not in the project", resigned(named(theirs, "stranger")))
    bad("revoked", "IdentityError", "one site that was revoked", resigned(named(theirs, REVOKED)))
    aggregate = maker.good["signed-aggregate"]
    tags, start = len(pack_tags(aggregate.tags)), -aggregate.tail_nbytes
    for name, place in (("tag", start), ("word-tag", start + TAG_NBYTES), ("body", start + tags), ("digest", -1)):
        where = {"reads": "decrypt", "config": "signed"}
        maker.flip(f"signed-aggregate-flip-{name}", f"one bit of the tail: {name}", place, "signed-aggregate", **where)
    fault, place = "one bit of the tail: signature", start + tags + DIGEST_NBYTES
    maker.flip("signed-aggregate-flip-signature", fault, place, "signed-aggregate", **where)


# Changes.


def tail_of(tags: list[int], proofs: list[tuple[bytes, bytes]]) -> bytes:
    return pack_tags(tags) + b"".join(body + signature for body, signature in proofs)


def flipped(signature: bytes) -> bytes:
    return bytes([signature[0] ^ 1]) + signature[1:]


def signature(which: int, change: Any) -> Change:
    """Change the signature of one contribution."""

    def apply(container: Container) -> None:
        body, signature = container.proofs[which]
        container.proofs[which] = body, change(signature)

    return apply


def body(which: int, digest: bytes) -> Change:
    """Change the body digest of one contribution."""
    return lambda container: container.proofs.__setitem__(which, (digest, container.proofs[which][1]))


def in_header(*path: Any, to: Any) -> Change:
    return lambda container: put(*path, to=to)(container.header)


def put_contribution(which: int, part: int, value: str) -> Change:
    return in_header("contributions", which, part, to=value)


def named(which: int, name: str) -> Change:
    return put_contribution(which, 0, name)


def resigned(change: Change) -> Change:
    """A change that all sites then sign."""

    def apply(container: Container) -> None:
        change(container)
        sign(container)

    return apply


def stale(*path: Any, to: Any) -> Change:
    """The signature of an update that differs in one thing."""

    def apply(container: Container) -> None:
        other = container.copy()
        put(*path, to=to)(other.header)
        sign(other)
        container.proofs = other.proofs

    return apply


def without_purpose(container: Container) -> None:
    site = container.header["contributions"][0][0]
    message = container.head[-DIGEST_NBYTES:] + container.body
    container.proofs = [(container.body, identity(site).sign(message))]
