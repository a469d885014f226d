"""Makes the vectors with one fault each from the good ones; docs/wire-format.md says what is a fault.

python tests/vectors/make.py            the same bytes again, from the good files and the key that are checked in
python tests/vectors/make.py --fresh    good files under a new key first: ciphertexts are random
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "support"))

from container import CLIENT_KEY, SERVER_KEY, UPDATE, Container, block_nbytes, canonical, put_word, row_offsets  # noqa: E402

PARAMS = {"scheme": "CKKS", "poly_modulus_degree": 2048, "coeff_mod_bit_sizes": [27, 26], "scale_bits": 20}
CONFIG = {
    "he": {"lib": "tenseal", "config": PARAMS},
    "encrypt": "all",
    "aggregation": {"min_clients": 2, "max_clients": 4, "max_abs": 1.0, "max_weight": 100.0},
}
#: The same federation with one tensor in the clear.
PARTLY = CONFIG | {"encrypt": {"exclude": ["head.bias"]}}
ROUND = 7
STATES = {
    "site-1": {"conv.weight": [[0.5, -0.25], [1.0, -1.0]], "head.bias": [0.75, -0.125, 0.0], "scale": 0.5, "empty": []},
    "site-2": {"conv.weight": [[-0.5, 0.25], [1.0, 0.5]], "head.bias": [0.25, 0.875, 1.0], "scale": -1.0, "empty": []},
}
DTYPES = {"conv.weight": "float32", "head.bias": "float64", "scale": "float16", "empty": "float32"}
WEIGHTS = {"site-1": 10.0, "site-2": 30.0}
CONFIGS = {"all": CONFIG, "partly": PARTLY}


@dataclass
class Vector:
    """A file, what reads it, and the error that reading must raise."""

    name: str
    reads: str
    error: str
    fault: str
    blob: bytes = field(repr=False)
    config: str = "all"

    @property
    def file(self) -> str:
        return f"bad-{self.name}.secagg"


class Good:
    """The good files."""

    def __init__(self) -> None:
        self.blobs = {path.name: path.read_bytes() for path in sorted(HERE.glob("good-*.secagg"))}

    def __getitem__(self, name: str) -> Container:
        return Container.read(self.blob(name))

    def blob(self, name: str) -> bytes:
        return self.blobs[f"good-{name}.secagg"]


def make(good: Good) -> list[Vector]:
    """Return every vector with a fault, the same for the same good files."""
    vectors: list[Vector] = []

    def add(name: str, error: str, fault: str, blob: bytes, reads: str = "add", config: str = "all") -> None:
        vectors.append(Vector(name, reads, error, fault, blob, config))

    def edit(
        name: str, error: str, fault: str, change: Callable[[Container], Any], source: str = "update", **where: str
    ) -> None:
        container = good[source]
        change(container)
        add(name, error, fault, container.to_bytes(), **where)

    def header(
        name: str, error: str, fault: str, change: Callable[[dict[str, Any]], Any], source: str = "update", **where: str
    ) -> None:
        edit(name, error, fault, lambda container: change(container.header), source, **where)

    def text(name: str, fault: str, change: Callable[[bytes], bytes]) -> None:
        edit(
            name,
            "FormatError",
            fault,
            lambda container: setattr(container, "header", change(canonical(container.header))),
        )

    def flip(
        name: str, fault: str, place: int, source: str = "update", error: str = "DigestError", **where: str
    ) -> None:
        blob = bytearray(good.blob(source))
        blob[place] ^= 0x10
        add(name, error, fault, bytes(blob), **where)

    blob, update = good.blob("update"), good["update"]
    head = len(update.head)

    # Preamble.
    edit("magic", "FormatError", "the first byte is not S", lambda c: setattr(c, "magic", b"TECAGG\r\n"))
    edit(
        "magic-line-end",
        "FormatError",
        "the line end in the magic was rewritten",
        lambda c: setattr(c, "magic", b"SECAGG\n\n"),
    )
    edit("version-0", "FormatError", "version 0", lambda c: setattr(c, "version", 0))
    edit("version-2", "FormatError", "version 2", lambda c: setattr(c, "version", 2))
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
    add("cut-payload", "FormatError", "cut within the payload", blob[: head + 5000])
    add("cut-digest", "FormatError", "cut before the last byte", blob[:-1])
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
    flip("flip-payload", "one bit of the payload", head + 7000)
    flip("flip-frame-digest", "one bit of the frame's digest", len(blob) - 1)
    other = good.blob("update-2")
    add(
        "foreign-frame",
        "DigestError",
        "the frame of another good update",
        blob[:head] + other[len(good["update-2"].head) :],
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
    header("name-twice", "FormatError", "two tensors of one name", lambda h: h["layout"][0].__setitem__(0, "scale"))

    # Words.
    prime = good["server-key"].header["primes"][0]
    words = update.payloads[0]
    for name, row, index, word, fault in (
        ("word-first", 0, 0, prime, "the first word is the prime itself"),
        ("word-middle", 1, 0, prime + 1, "the first word of c1 is above the prime"),
        ("word-last", 1, 2047, 2**27 - 1, "the last word has all bits set"),
    ):
        start, bits = row_offsets(PARAMS)[row]
        large = put_word(words, start, bits, index, word)
        edit(name, "FormatError", fault, lambda c, large=large: c.payloads.__setitem__(0, large))

    # Another federation, round or model. `good-update-2` is in the sum already.
    header("other-key", "KeyMismatchError", "another key's fingerprint", lambda h: h.update(key="ab" * 32))
    header("other-round", "RoundMismatchError", "round 8", lambda h: h.update(round=8))
    header("other-scale", "MismatchError", "another scale", lambda h: h["params"].update(scale_bits=19))
    header("other-max-abs", "MismatchError", "another max_abs", lambda h: h["aggregation"].update(max_abs=2.0))
    header(
        "other-max-clients", "MismatchError", "another max_clients", lambda h: h["aggregation"].update(max_clients=5)
    )
    header(
        "other-max-weight", "MismatchError", "another max_weight", lambda h: h["aggregation"].update(max_weight=1000.0)
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
    flip("partly-flip", "one bit of the clear frame", -100, "partly-update", config="partly")

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
    flip("aggregate-flip", "one bit of the payload", 5000, "aggregate", reads="decrypt")
    edit(
        "aggregate-zeros",
        "DecryptionError",
        "all words zero",
        lambda c: c.payloads.__setitem__(0, bytes(len(words))),
        "aggregate",
        reads="decrypt",
    )
    half = block_nbytes(PARAMS) // 2
    edit(
        "aggregate-noise", "DecryptionError", "the two polynomials in each other's place",
        lambda c: c.payloads.__setitem__(0, c.payloads[0][half:] + c.payloads[0][:half]), "aggregate", reads="decrypt",
    )  # fmt: skip

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
    return vectors


def large_key_word(container: Container) -> None:
    primes = container.header["primes"]
    (payload,) = container.payloads
    payload = primes[0].to_bytes(8, "little") + payload[8:]
    container.payloads = [payload]
    text = f"secagg key v1\0CKKS\0{PARAMS['poly_modulus_degree']}\0[{', '.join(map(str, primes))}]\0"
    container.header["fingerprint"] = blake3(text.encode() + payload).hexdigest()


def index(good: Good, vectors: list[Vector]) -> str:
    """Return the text of index.json."""
    mean = {name: _mean(name) for name in DTYPES}
    data = {
        "about": "made by make.py; the key is for these tests only",
        "configs": CONFIGS,
        "round": ROUND,
        "fingerprint": good["client-key"].header["fingerprint"],
        "good": {
            "keys": ["good-client-key.secagg", "good-server-key.secagg"],
            "all": {"updates": ["good-update.secagg", "good-update-2.secagg"], "aggregate": "good-aggregate.secagg"},
            "partly": {
                "updates": ["good-partly-update.secagg", "good-partly-update-2.secagg"],
                "aggregate": "good-partly-aggregate.secagg",
            },
            "weights": list(WEIGHTS.values()),
            "dtypes": DTYPES,
            "mean": mean,
        },
        "bad": [
            {"file": v.file, "reads": v.reads, "config": v.config, "error": v.error, "fault": v.fault} for v in vectors
        ],
    }
    return json.dumps(data, indent=1) + "\n"


def _mean(name: str) -> Any:
    def mix(values: list[Any]) -> Any:
        if isinstance(values[0], list):
            return [mix(list(inner)) for inner in zip(*values, strict=True)]
        return sum(weight * value for weight, value in zip(WEIGHTS.values(), values, strict=True)) / sum(
            WEIGHTS.values()
        )

    return mix([state[name] for state in STATES.values()])


def make_good() -> None:
    """Write keys, updates and aggregates under a new key."""
    import numpy as np

    import secagg

    keys = secagg.generate_keys(secagg.Config.from_dict(CONFIG))
    keys.client.save(HERE / "good-client-key.secagg")
    keys.server.save(HERE / "good-server-key.secagg")
    for prefix, settings in (("good", CONFIG), ("good-partly", PARTLY)):
        config = secagg.Config.from_dict(settings)
        aggregator = secagg.Aggregator(config, keys.server, round=ROUND)
        for site, suffix in (("site-2", "-2"), ("site-1", "")):
            state = {name: np.array(value, DTYPES[name]) for name, value in STATES[site].items()}
            update = secagg.Client(config, keys.client, site).encrypt(state, WEIGHTS[site], ROUND)
            update.save(HERE / f"{prefix}-update{suffix}.secagg")
            aggregator.add(update)
        aggregator.finish().save(HERE / f"{prefix}-aggregate.secagg")
    (HERE / "good-client-key.secagg").chmod(0o644)  # it keeps no secret, and a checkout would widen it anyway


def write(folder: Path) -> None:
    """Write every vector with a fault, and the index, into a folder."""
    good = Good()
    vectors = make(good)
    for vector in vectors:
        (folder / vector.file).write_bytes(vector.blob)
    (folder / "index.json").write_text(index(good, vectors))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--fresh", action="store_true", help="make the good files anew first")
    if parser.parse_args().fresh:
        make_good()
    for path in HERE.glob("bad-*.secagg"):
        path.unlink()
    write(HERE)
