"""Faults of bases, tails, signatures and verified sums, one a file."""

from __future__ import annotations

from typing import Any

import tail_by_hand
from container import DIGEST_NBYTES, PRIME, PROOF_NBYTES, Container, frame_digest, unpack
from maker import TAIL_NBYTES, Change, Maker
from project_by_hand import REVOKED
from scheme_faults import added, put
from tail_by_hand import identity, malleable, sign

NONE = bytes(64)


def tail_faults(maker: Maker) -> None:
    """Add them all."""
    _bases(maker)
    _tails(maker)
    _signatures(maker)
    _manifests(maker)
    _sums(maker)


def _bases(maker: Maker) -> None:
    maker.header("base-missing", "FormatError", "no base", lambda header: header.pop("base"))
    for name, value, fault in (
        ("short", "ab" * 31, "a base of 31 bytes"),
        ("long", "ab" * 33, "a base of 33 bytes"),
        ("capitals", "AB" * 32, "a base in capitals"),
        ("number", 0, "a base that is a number"),
        ("empty", "", "an empty base, where the canonical form has null"),
    ):
        maker.header(f"base-{name}", "FormatError", fault, put("base", to=value))
    fault = "a base where the first update of the round has none"
    maker.header("other-base", "MismatchError", fault, put("base", to="ab" * 32))


def _tails(maker: Maker) -> None:
    """Tails that were cut or changed. Nobody has signed them."""
    blob, update = maker.good.blob("update"), maker.good["update"]
    tail = len(blob) - TAIL_NBYTES
    maker.add("cut-tail", "FormatError", "cut before the tail", blob[:tail])
    maker.add("cut-tag", "FormatError", "cut behind the tag", blob[: tail + 16])
    maker.add("cut-tail-digest", "FormatError", "cut before the last byte", blob[:-1])
    for name, place in (("tag", 0), ("body", 16), ("signature", 48), ("digest", 143)):
        maker.flip(f"flip-tail-{name}", f"one bit of the tail: {name}", tail + place)
    digest = frame_digest(update.head[-DIGEST_NBYTES:], 0, blob[tail:-DIGEST_NBYTES])
    fault = "the tail's digest has the place of the first frame"
    maker.add("tail-index", "DigestError", fault, blob[:-DIGEST_NBYTES] + digest)
    maker.edit("tag-ckks", "FormatError", "a tag in CKKS", lambda c: setattr(c, "tag", 1))

    def other_body(container: Container) -> None:
        container.tail = tail_of(container.tag, [(maker.good["update-2"].body, NONE)])

    maker.edit("body-other", "DigestError", "the digest of another body", other_body)
    proofs = lambda count: lambda c: setattr(c, "tail", tail_of(c.tag, [(c.body, NONE)] * count))  # noqa: E731
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
        bad(f"tag-{name}", "FormatError", fault, resigned(lambda c, tag=tag: setattr(c, "tag", tag)))


def _manifests(maker: Maker) -> None:
    """Lists of contributions that are not what the reader knows of the round. What it signs, each site has signed."""
    listed = maker.good["signed-aggregate"].header["contributions"]
    mine = [site for site, _ in listed].index("site-1")
    theirs = 1 - mine

    def bad(name: str, error: str, fault: str, change: Change) -> None:
        source = "signed-aggregate"
        maker.edit(f"signed-aggregate-{name}", error, fault, change, source, reads="decrypt", config="signed")

    def proofs(change: Any) -> Change:
        return lambda container: setattr(container, "tail", tail_of(container.tag, change(container.proofs)))

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
    for name, place in (("tag", 0), ("body", 20), ("signature", 50), ("digest", -1)):
        place = place if place < 0 else place - (TAIL_NBYTES + PROOF_NBYTES)
        where = {"reads": "decrypt", "config": "signed"}
        maker.flip(f"signed-aggregate-flip-{name}", f"one bit of the tail: {name}", place, "signed-aggregate", **where)


def _sums(maker: Maker) -> None:
    """Sums that are plausible, and are not those of the updates listed, which their sites have signed."""

    def bad(config: str, name: str, fault: str, change: Change) -> None:
        source = f"{config}-aggregate"
        maker.edit(f"{config}-sum-{name}", "DecryptionError", fault, change, source, reads="decrypt", config=config)

    bad("signed", "tag", "the tag is one more", lambda c: setattr(c, "tag", (c.tag + 1) % PRIME))
    bad("signed", "tag-zero", "no tag", lambda c: setattr(c, "tag", 0))
    one = maker.good["signed-update"]

    def only_one(container: Container) -> None:
        container.payloads, container.tag = one.payloads, one.tag

    bad("signed", "one", "one site's update, listed as the sum of both", only_one)
    both = [site for site, _ in maker.good["signed-aggregate"].header["contributions"]]
    assert both == ["site-2", "site-1"]
    whole = maker.good["bgv-whole-update"]

    def doubled(container: Container) -> None:
        primes = maker.good["bgv-server-key"].header["primes"]
        container.payloads = [twice(payload, primes[0]) for payload in whole.payloads]
        container.tag = 2 * whole.tag % PRIME

    bad("bgv-whole", "doubled", "one site's update twice, listed as the sum of two", doubled)
    digits = 4  # of a weight of 11 bits
    bad("flashe", "value", "a value is one step more", added({digits + 1: 1}))
    bad("flashe", "weight", "a weight is a little more", added({0: 1}))
    bad("bgv-partly", "clear", "a clear value is one step more", clear(0, 1))

    def unsigned(container: Container) -> None:
        words = tail_by_hand.words_of(container, maker.good["signed-client-key"])
        assert min(words) < 0
        alpha, pads = tail_by_hand.secrets_of(container, maker.good["signed-client-key"])
        container.tag = tail_by_hand.tag(alpha, [word % 2**64 for word in words], pads)

    bad("bgv-partly", "clear-unsigned", "the tag of clear words taken as unsigned", unsigned)
    bad("bgv-partly", "clear-padding", "a word behind the last clear value", clear(4095, 1))


# Changes.


def tail_of(tag: int, proofs: list[tuple[bytes, bytes]]) -> bytes:
    return tag.to_bytes(16, "little") + b"".join(body + signature for body, signature in proofs)


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


def twice(payload: bytes, prime: int) -> bytes:
    """Every word of 53 bits doubled modulo its prime."""
    words = [2 * word % prime for word in unpack(payload, 53)]
    number = sum(word << 53 * index for index, word in enumerate(words))
    return number.to_bytes(len(payload), "little")


def clear(index: int, amount: int) -> Change:
    """Add to a word of the clear section."""

    def apply(container: Container) -> None:
        payload = container.payloads[1]
        word = (int.from_bytes(payload[8 * index : 8 * index + 8], "little") + amount) % 2**64
        container.payloads[1] = payload[: 8 * index] + word.to_bytes(8, "little") + payload[8 * index + 8 :]

    return apply
