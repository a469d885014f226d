"""Faults of the container and of what every scheme has in common, one a file: an update of CKKS is what they are in."""

from __future__ import annotations

import json
from typing import Any

import tail_by_hand
from by_hand import ROOT_NBYTES
from container import (
    CLIENT_KEY,
    SERVER_KEY,
    UPDATE,
    Container,
    block_nbytes,
    fingerprint,
    put_word,
    row_offsets,
)
from maker import Change, Maker, prefix_of


def local_nonnegative(header: dict[str, Any]) -> None:
    header["layout"].append([["count"], "int64", [], "local", True])


def container_faults(maker: Maker) -> None:
    """Add them all."""
    good, add, edit, header, text, flip = maker.good, maker.add, maker.edit, maker.header, maker.text, maker.flip
    blob, update = good.blob("update"), good["update"]
    head, tail_nbytes = len(update.head), update.tail_nbytes
    tail = len(blob) - tail_nbytes

    # Preamble.
    edit("magic", "FormatError", "the first byte is not S", lambda c: setattr(c, "magic", b"TECAGG\r\n"))
    edit(
        "magic-line-end",
        "FormatError",
        "the line end in the magic was rewritten",
        lambda c: setattr(c, "magic", b"SECAGG\n\n"),
    )
    edit("version-0", "FormatError", "version 0", lambda c: setattr(c, "version", 0))
    edit("version-1", "FormatError", "version 1, which had no epoch", lambda c: setattr(c, "version", 1))
    edit("version-2", "FormatError", "version 2, which had no tail", lambda c: setattr(c, "version", 2))
    edit("version-3", "FormatError", "version 3, which knew no ties", lambda c: setattr(c, "version", 3))
    edit("version-5", "FormatError", "version 5", lambda c: setattr(c, "version", 5))
    edit("kind-9", "FormatError", "a kind that there is not", lambda c: setattr(c, "kind", 9))
    edit("reserved", "FormatError", "the byte after the kind is not 0", lambda c: setattr(c, "reserved", 1))
    edit(
        "header-cap",
        "FormatError",
        "the header claims 4 MiB and a byte",
        lambda c: setattr(c, "header_nbytes", (4 << 20) + 1),
    )
    edit(
        "header-length",
        "DigestError",
        "the header claims a byte less than it has",
        lambda c: setattr(c, "header_nbytes", head - 49),
    )

    # Length.
    add("empty", "FormatError", "no byte at all", b"")
    add("cut-preamble", "FormatError", "cut within the preamble", blob[:15])
    add("cut-header", "FormatError", "cut within the header", blob[:200])
    add("cut-head", "FormatError", "cut before the last byte of the head", blob[: head - 1])
    add("cut-frames", "FormatError", "cut after the head", blob[:head])
    add("cut-payload", "FormatError", "cut within the payload", blob[: head + 2000])
    add("cut-digest", "FormatError", "cut before the last byte of the frame's digest", blob[: tail - 1])
    add("trailing-byte", "FormatError", "a byte too many", blob + b"\0")
    edit(
        "payload-short",
        "FormatError",
        "the payload is a word short, its digest fits",
        lambda c: c.payloads.__setitem__(0, c.payloads[0][:-8]),
    )
    edit("frame-more", "FormatError", "a frame too many", lambda c: c.payloads.append(b"x"))

    # Digests.
    flip("flip-header", "one bit of the header", 60)
    flip("flip-head-digest", "one bit of the head's digest", head - 1)
    flip("flip-payload", "one bit of the payload", head + 2500)
    flip("flip-frame-digest", "one bit of the frame's digest", tail - 1)
    other = good.blob("update-2")
    add(
        "foreign-frame",
        "DigestError",
        "the frame of another good update",
        blob[:head] + other[len(good["update-2"].head) : -tail_nbytes] + blob[tail:],
    )

    # Header: its form.
    text("json-none", "the header is no JSON", lambda t: b"{")
    text("json-list", "the header is a list", lambda t: b"[]")
    text("json-nested", "the header is nested 20,000 deep", lambda t: b"[" * 20_000)
    text("json-encoding", "the header is not UTF-8", lambda t: t.replace(b"scale", b"sc\xe4le"))
    text(
        "json-spaces",
        "a space where there is none in the canonical form",
        lambda t: t.replace(b'"round":', b'"round": '),
    )
    text(
        "json-order",
        "keys in another order",
        lambda t: json.dumps(dict(reversed(json.loads(t).items())), separators=(",", ":")).encode(),
    )
    text("json-duplicate", "a key twice", lambda t: t.replace(b'"round":7', b'"round":7,"round":7'))
    text("json-nan", "NaN", lambda t: t.replace(b'"max_abs":1.0', b'"max_abs":NaN'))
    text("json-escape", "an escaped letter", lambda t: t.replace(b'"empty"', b'"\\u0065mpty"'))
    text(
        "json-integer",
        "a whole number where the canonical form has 1.0",
        lambda t: t.replace(b'"max_abs":1.0', b'"max_abs":1'),
    )

    # Header: what it says.
    header("key-missing", "FormatError", "no round", lambda h: h.pop("round"))
    header("key-more", "FormatError", "a key that there is not", lambda h: h.update(weight=10))
    header("round-float", "FormatError", "the round is 7.0", lambda h: h.update(round=7.0))
    header("round-large", "FormatError", "the round is 2**32", lambda h: h.update(round=2**32))
    header("max-abs-huge", "FormatError", "max_abs has 400 digits", lambda h: h["aggregation"].update(max_abs=10**400))
    header(
        "ceiling",
        "FormatError",
        "params beyond 128-bit security",
        lambda h: h["params"].update(coeff_mod_bit_sizes=[27, 27]),
    )
    header(
        "site-name",
        "FormatError",
        "a site's name with a slash",
        lambda h: h["contributions"][0].__setitem__(0, "../site"),
    )
    header(
        "nonce-short", "FormatError", "a nonce of 31 bytes", lambda h: h["contributions"][0].__setitem__(1, "ab" * 31)
    )
    header(
        "two-contributions",
        "FormatError",
        "an update of two",
        lambda h: h["contributions"].append(["site-9", "ab" * 32]),
    )
    header("no-contribution", "FormatError", "an update of nobody", lambda h: h["contributions"].clear())
    header("key-capitals", "FormatError", "the key's fingerprint in capitals", lambda h: h.update(key=h["key"].upper()))
    header("dtype", "FormatError", "a dtype that there is not", lambda h: h["layout"][0].__setitem__(1, "float8"))
    header("role", "FormatError", "a float tensor that is local", lambda h: h["layout"][0].__setitem__(3, "local"))
    header("shape-negative", "FormatError", "a negative extent", lambda h: h["layout"][0].__setitem__(2, [-2, -2]))
    header("shape-huge", "FormatError", "2**41 values", lambda h: h["layout"][0].__setitem__(2, [2**40, 2]))
    header(
        "shape-large",
        "FormatError",
        "2**39 values, and no bytes for them",
        lambda h: h["layout"][0].__setitem__(2, [2**39]),
    )
    header(
        "shape-absurd",
        "FormatError",
        "no value, in extents of 2**40",
        lambda h: h["layout"][3].__setitem__(2, [0, 2**40, 2**40]),
    )
    header("name-twice", "FormatError", "two tensors of one name", lambda h: h["layout"][0].__setitem__(0, ["scale"]))
    header("names-none", "FormatError", "a tensor without a name", lambda h: h["layout"][0].__setitem__(0, []))
    header("names-text", "FormatError", "one name in place of a list", lambda h: h["layout"][0].__setitem__(0, "scale"))
    header(
        "tied-name-twice",
        "FormatError",
        "a second name that another tensor has",
        lambda h: h["layout"][0].__setitem__(0, ["conv.weight", "scale"]),
    )
    header("nonnegative", "FormatError", "nonnegative a number", lambda h: h["layout"][0].__setitem__(4, 1))
    header("local-nonnegative", "FormatError", "an integer tensor that is nonnegative", local_nonnegative)
    header("layout-version-3", "FormatError", "a tensor as version 3 wrote it", lambda h: h["layout"][0].pop())

    # Words.
    whole = good["whole-update"]
    params, prime, words = whole.header["params"], good["whole-server-key"].header["primes"][0], whole.payloads[0]
    for name, row, index, word, fault in (
        ("word-first", 0, 0, prime, "the first word is the prime itself"),
        ("word-middle", 1, 0, prime + 1, "the first word of c1 is above the prime"),
        ("word-last", 1, 2047, 2**27 - 1, "the last word has all bits set"),
    ):
        start, bits = row_offsets(params)[row]
        large = put_word(words, start, bits, index, word)
        change = lambda c, large=large: c.payloads.__setitem__(0, large)  # noqa: E731
        edit(name, "FormatError", fault, change, "whole-update", config="whole")
    half = block_nbytes(params) // 2
    edit(
        "transparent",
        "FormatError",
        "the second polynomial is zero",
        lambda c: c.payloads.__setitem__(0, words[:half] + bytes(half)),
        "whole-update",
        config="whole",
    )

    # Another federation, round or model. `good-update-2` is in the sum already.
    header("other-key", "KeyMismatchError", "another key's fingerprint", lambda h: h.update(key="ab" * 32))
    header("other-round", "RoundMismatchError", "round 8", lambda h: h.update(round=8))
    header("other-scale", "MismatchError", "another scale", lambda h: h["params"].update(scale_bits=17))
    header("other-max-abs", "MismatchError", "another max_abs", lambda h: h["aggregation"].update(max_abs=0.5))
    header(
        "other-max-clients", "MismatchError", "another max_clients", lambda h: h["aggregation"].update(max_clients=5)
    )
    header(
        "other-max-weight", "MismatchError", "another max_weight", lambda h: h["aggregation"].update(max_weight=1000.0)
    )
    header(
        "other-tie",
        "LayoutError",
        "one tensor under two names where it has one",
        lambda h: h["layout"][0].__setitem__(0, ["conv.weight", "tied.weight"]),
    )
    header(
        "other-nonnegative",
        "LayoutError",
        "a tensor that the configuration does not floor",
        lambda h: h["layout"][0].__setitem__(4, True),
    )
    header("other-shape", "LayoutError", "a tensor of another shape", lambda h: h["layout"][0].__setitem__(2, [4]))
    header("other-order", "LayoutError", "tensors in another order", lambda h: h["layout"].reverse())
    header(
        "same-site",
        "DuplicateError",
        "a site that is in the sum",
        lambda h: h["contributions"][0].__setitem__(0, "site-2"),
    )
    nonce = good["update-2"].header["contributions"][0][1]
    header(
        "same-nonce",
        "DuplicateError",
        "a nonce that is in the sum",
        lambda h: h["contributions"][0].__setitem__(1, nonce),
    )

    # Plaintext where ciphertext belongs.
    add("raw-floats", "FormatError", "floats without a container", b"\0\0\x80?" * 8)
    edit(
        "plaintext-payload",
        "FormatError",
        "floats in place of the ciphertext",
        lambda c: c.payloads.__setitem__(0, b"\0\0\x80?" * 8),
    )

    def in_clear(container: Container) -> None:
        for spec in container.header["layout"]:
            spec[3] = "clear"
        container.payloads.append((1 << 59).to_bytes(8, "little") * 8 + bytes(8 * 4088))

    edit("plaintext-roles", "LayoutError", "all tensors clear where all must be encrypted", in_clear)
    add("partly-less", "LayoutError", "one tensor clear where all must be encrypted", good.blob("partly-update"))
    add("partly-more", "LayoutError", "all encrypted where one tensor must be clear", blob, config="partly")
    edit(
        "partly-cut",
        "FormatError",
        "the clear frame is missing",
        lambda c: c.payloads.pop(),
        "partly-update",
        config="partly",
    )
    edit(
        "partly-order",
        "DigestError",
        "the clear frame comes first",
        lambda c: c.payloads.reverse(),
        "partly-update",
        config="partly",
    )
    flip("partly-flip", "one bit of the clear frame", -100 - tail_nbytes, "partly-update", config="partly")

    # Another kind of container.
    add("aggregate", "MismatchError", "an aggregate where an update belongs", good.blob("aggregate"))
    edit(
        "aggregate-as-update",
        "FormatError",
        "an aggregate that says it is an update",
        lambda c: setattr(c, "kind", UPDATE),
        "aggregate",
    )
    add("server-key", "FormatError", "a key where an update belongs", good.blob("server-key"))

    # Aggregates.
    add("not-an-aggregate", "MismatchError", "an update where an aggregate belongs", blob, reads="decrypt")
    header(
        "quorum",
        "QuorumError",
        "fewer sites than min_clients",
        lambda h: h["contributions"].pop(),
        "aggregate",
        reads="decrypt",
    )
    header(
        "site-twice",
        "DuplicateError",
        "a site twice",
        lambda h: h["contributions"][1].__setitem__(0, "site-2"),
        "aggregate",
        reads="decrypt",
    )
    header(
        "capacity", "CapacityError", "more sites than max_clients",
        lambda h: h["contributions"].extend([f"more-{i}", f"{i:064x}"] for i in range(3)), "aggregate", reads="decrypt",
    )  # fmt: skip
    header(
        "aggregate-key",
        "KeyMismatchError",
        "another key's fingerprint",
        lambda h: h.update(key="ab" * 32),
        "aggregate",
        reads="decrypt",
    )
    flip("aggregate-flip", "one bit of the payload", 3000, "aggregate", reads="decrypt")

    def garbage(name: str, fault: str, change: Change, config: str = "all") -> None:
        """A sum that no sites can have sent, with tags that fit it."""

        def fitted(container: Container) -> None:
            container.payloads = [change(container.payloads[0])]
            tail_by_hand.fit(container, good.key(config))

        source = f"{prefix_of(config)}aggregate"
        edit(name, "ImplausibleSumError", fault, fitted, source, reads="decrypt", config=config)

    garbage("aggregate-zeros", "all words zero", lambda payload: bytes(len(payload)))
    garbage("whole-aggregate-zeros", "all words zero", lambda payload: bytes(len(payload)), "whole")
    fault = "the two polynomials in each other's place"
    garbage("aggregate-noise", fault, lambda payload: payload[half:] + payload[:half], "whole")

    # Key files.
    key = good.blob("client-key")
    add("key-cut", "KeyFileError", "cut within the words", key[:5000], reads="load_key")
    flip("key-flip", "one bit of the server key's header", 100, "server-key", "KeyFileError", reads="load_key")
    add(
        "key-trailing",
        "KeyFileError",
        "bytes behind a server key",
        good.blob("server-key") + bytes(40),
        reads="load_key",
    )
    edit(
        "key-words",
        "KeyFileError",
        "words in a server key",
        lambda c: c.payloads.append(bytes(64)),
        "server-key",
        reads="load_key",
    )
    header(
        "key-primes",
        "KeyFileError",
        "a prime of other bits",
        lambda h: h["primes"].__setitem__(0, 2**28 - 1),
        "server-key",
        reads="load_key",
    )
    header(
        "key-fingerprint",
        "KeyFileError",
        "a fingerprint in capitals",
        lambda h: h.update(fingerprint=h["fingerprint"].upper()),
        "server-key",
        reads="load_key",
    )
    edit(
        "key-no-words",
        "KeyFileError",
        "a client key without words",
        lambda c: setattr(c, "kind", CLIENT_KEY),
        "server-key",
        reads="load_key",
    )
    edit(
        "key-role",
        "KeyFileError",
        "a client key that says it is a server key",
        lambda c: setattr(c, "kind", SERVER_KEY),
        "client-key",
        reads="load_key",
    )
    edit(
        "key-word",
        "KeyFileError",
        "a word that is the prime itself, the fingerprint fits",
        large_key_word,
        "client-key",
        reads="load_key",
    )
    add("key-update", "KeyFileError", "an update where a key belongs", blob, reads="load_key")


def large_key_word(container: Container) -> None:
    (payload,) = container.payloads
    prime = container.header["primes"][0].to_bytes(8, "little")
    payload = payload[:ROOT_NBYTES] + prime + payload[ROOT_NBYTES + 8 :]
    container.payloads = [payload]
    container.header["fingerprint"] = fingerprint(container.header, payload)
