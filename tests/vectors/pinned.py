"""What nonces stand for: the words of c1, and FLASHE's pads, for given nonces; all computed by hand."""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import by_hand
import tail_by_hand
from blake3 import blake3
from container import fingerprint

#: Primes of so many bits, 1 modulo 2**14: the largest, of which candidates hardly ever fall short, and the smallest,
#: which nearly half of all candidates are not below.
LARGE = {26: 2**26 - 4 * 2**14 + 1, 36: 2**36 - 15 * 2**14 + 1, 40: 2**40 - 9 * 2**14 + 1, 53: 2**53 - 19 * 2**14 + 1}
LARGE[60] = 2**60 - 2**14 + 1
SMALL = {26: 2**25 + 17 * 2**14 + 1, 36: 2**35 + 2**14 + 1, 53: 2**52 + 24 * 2**14 + 1, 60: 2**59 + 2**14 + 1}

#: Primes, degree, first block, blocks, and how many nonces are added up.
EXPANSIONS = [
    ([LARGE[26]], 1024, 0, 1, 1),
    ([SMALL[26]], 1024, 0, 3, 1),
    ([LARGE[36], SMALL[36]], 2048, 1, 2, 1),
    ([SMALL[53]], 2048, 7, 1, 1),
    ([LARGE[53]], 2048, 0, 1, 3),
    ([LARGE[60], LARGE[40]], 8192, 5, 5, 2),  # more than is expanded at a time
    ([LARGE[60], SMALL[36], LARGE[26], SMALL[60]], 1024, 100, 2, 2),
    ([LARGE[40]], 4096, 1 << 29, 1, 1),  # counters beyond 32 bits
]

#: Epoch, round, site, number of the key and of the nonce.
PADS = [
    (0, 0, "site-1", 0, 0),
    (0, 0, "site-1", 0, 1),
    (0, 0, "site-1", 1, 0),
    (0, 0, "site-2", 0, 0),
    (0, 1, "site-1", 0, 0),
    (1, 0, "site-1", 0, 0),
    (2**32 - 1, 2**32 - 1, "a.B-9_" + "z" * 58, 2, 2),
]
PAD_BLOCKS = (0, 1, 5, 1 << 24)
PAD_WORDS = 4096


def expansions() -> dict[str, Any]:
    """The content of expansion.json."""
    about = "c1 of whole blocks: words in hexadecimal, BLAKE3 of each row as little-endian u64"
    return {"about": about, "cases": [_expansion(number, *case) for number, case in enumerate(EXPANSIONS)]}


def _expansion(number: int, primes: list[int], degree: int, first: int, blocks: int, count: int) -> dict[str, Any]:
    nonces = [_bytes32("nonce", 10 * number + index) for index in range(count)]
    rows = []
    for block in range(first, first + blocks):
        masks = [by_hand.mask(nonce, primes, degree, block) for nonce in nonces]
        for row, prime in enumerate(primes):
            words = [sum(column) % prime for column in zip(*(mask[row] for mask in masks), strict=True)]
            digest = blake3(struct.pack(f"<{degree}Q", *words)).hexdigest()
            shown = [f"{word:x}" for word in words[:4] + words[-2:]]
            rows.append({"block": block, "prime": prime, "first": shown[:4], "last": shown[4:], "blake3": digest})
    return {
        "nonces": [nonce.hex() for nonce in nonces],
        "primes": primes,
        "degree": degree,
        "slack": [by_hand.slack(prime, degree) for prime in primes],
        "block_nbytes": sum(by_hand.region_nbytes(prime, degree) for prime in primes),
        "first_block": first,
        "blocks": blocks,
        "rows": rows,
    }


def pads() -> dict[str, Any]:
    """The content of pads.json."""
    about = "FLASHE's pads: their first and last words in hexadecimal, BLAKE3 of each block as little-endian u64"
    return {"about": about, "cases": [_pad(*case) for case in PADS]}


def _pad(epoch: int, round: int, site: str, key: int, nonce: int) -> dict[str, Any]:
    secret, nonce_bytes = _bytes32("key", key), _bytes32("pad nonce", nonce)
    name = fingerprint({"params": {"scheme": "FLASHE"}, "primes": [], "plain_modulus": 0, "epoch": epoch}, secret)
    info = by_hand.pad_info(name, epoch, round, site, nonce_bytes)
    pad_key = by_hand.derive(secret, info)
    blocks = []
    for block in PAD_BLOCKS:
        stream = by_hand.keystream(pad_key, 8 * PAD_WORDS * block, 8 * PAD_WORDS)
        words = [f"{word:x}" for word in struct.unpack("<4Q", stream[:16] + stream[-16:])]
        blocks.append({"block": block, "first": words[:2], "last": words[2:], "blake3": blake3(stream).hexdigest()})
    return {
        "key": secret.hex(),
        "fingerprint": name,
        "epoch": epoch,
        "round": round,
        "site": site,
        "nonce": nonce_bytes.hex(),
        "info": info.hex(),
        "pad_key": pad_key.hex(),
        "blocks": blocks,
    }


def _bytes32(name: str, number: int) -> bytes:
    """Bytes that are nobody's secret."""
    return hashlib.sha256(f"secagg vectors {name} {number}".encode()).digest()


#: Epoch, round, number of the key, layout, sites with the number of their nonce, encrypted words, clear words.
ONE = [[["w"], "float32", [2, 3], "encrypted", False]]
TWO = [[["w.running_var", "v"], "float32", [], "encrypted", True], [["n"], "int64", [4], "local", False]]
TAGS: list[tuple[int, int, int, list[Any], list[tuple[str, int]], list[int], list[int]]] = [
    (0, 0, 0, ONE, [("site-1", 0)], [], []),
    (0, 0, 0, ONE, [("site-1", 0)], [1], []),
    (0, 0, 0, ONE, [("site-1", 1)], [1], []),
    (0, 0, 1, ONE, [("site-1", 0)], [1], []),
    (0, 0, 0, ONE, [("site-2", 0)], [1], []),
    (0, 1, 0, ONE, [("site-1", 0)], [1], []),
    (1, 0, 0, ONE, [("site-1", 0)], [1], []),
    (0, 0, 0, TWO, [("site-1", 0)], [1], []),
    (0, 0, 0, ONE, [("site-1", 0)], [1, 0], []),
    (0, 0, 0, ONE, [("site-1", 0)], [2**64 - 1, 2**63, 5], []),
    (0, 0, 0, ONE, [("site-1", 0)], [2**64 - 1, 7], [-1, 2**62, -(2**63), 3]),
    (0, 0, 0, ONE, [("site-1", 0), ("site-2", 1), ("site-3", 2)], [3 * index for index in range(5000)], [-9] * 4096),
    (2**32 - 1, 2**32 - 1, 2, TWO, [("a.B-9_" + "z" * 58, 2)], [2**64 - 1] * 3000, []),
]


def tags() -> dict[str, Any]:
    """The content of tags.json."""
    about = "tags of words: α and r in hexadecimal; encrypted words are unsigned, clear ones signed"
    return {"about": about, "cases": [_tag(*case) for case in TAGS]}


def _tag(
    epoch: int,
    round: int,
    key: int,
    layout: list[Any],
    sites: list[tuple[str, int]],
    encrypted: list[int],
    clear: list[int],
) -> dict[str, Any]:
    secret, fields = _bytes32("key", key), {"params": {"scheme": "FLASHE"}, "primes": [], "plain_modulus": 0}
    name, fingerprint_ = fingerprint(fields | {"epoch": epoch}, secret), tail_by_hand.layout_fingerprint(layout)
    place = (secret, name, epoch, round, fingerprint_)
    contributions = [(site, _bytes32("tag nonce", nonce)) for site, nonce in sites]
    alpha, pads = tail_by_hand.point(*place), [tail_by_hand.pad(*place, *item) for item in contributions]
    return {
        "key": secret.hex(),
        "fingerprint": name,
        "epoch": epoch,
        "round": round,
        "layout": layout,
        "layout_fingerprint": fingerprint_.hex(),
        "contributions": [[site, nonce.hex()] for site, nonce in contributions],
        "alpha": f"{alpha:032x}",
        "pads": [f"{pad:032x}" for pad in pads],
        "encrypted": _runs(encrypted),
        "clear": _runs(clear),
        "tag": f"{tail_by_hand.tag(alpha, encrypted + clear, pads):032x}",
    }


def _runs(words: list[int]) -> list[list[int]]:
    """Words as [first, step, count]."""
    if len(words) > 100:
        step = words[1] - words[0]
        assert words == [words[0] + step * index for index in range(len(words))]
        return [[words[0], step, len(words)]]
    return [[word, 0, 1] for word in words]
