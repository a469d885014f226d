"""What nonces stand for, the words of c1 and FLASHE's pads, and tags of given words; all computed by hand."""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import by_hand
import tail_by_hand
from blake3 import blake3
from container import CALIBRATION, UPDATE, fingerprint

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
    root, nonce_bytes = _bytes32("key", key), _bytes32("pad nonce", nonce)
    name = fingerprint({"params": {"scheme": "FLASHE"}, "primes": [], "plain_modulus": 0, "epoch": epoch}, root)
    info = by_hand.pad_info(name, epoch, round, site, nonce_bytes)
    pad_key = by_hand.derive(root, info)
    blocks = []
    for block in PAD_BLOCKS:
        stream = by_hand.keystream(pad_key, 8 * PAD_WORDS * block, 8 * PAD_WORDS)
        words = [f"{word:x}" for word in struct.unpack("<4Q", stream[:16] + stream[-16:])]
        blocks.append({"block": block, "first": words[:2], "last": words[2:], "blake3": blake3(stream).hexdigest()})
    return {
        "key": root.hex(),
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


ONE = [[["w"], "float32", [2, 3], "encrypted", False]]
TWO = [[["w.running_var", "v"], "float32", [], "encrypted", True], [["n"], "int64", [4], "local", False]]
AGREED = {"max_abs": 1.0, "max_clients": 4, "max_weight": 1.0, "precision": "fixed"}
MEASURED = AGREED | {"max_abs": None, "max_weight": None, "precision": "auto"}
FLASHE = {
    "scheme": "FLASHE",
    "value_bits": 11,
    "rounding": "stochastic",
    "overflow": "error",
    "error_feedback": False,
}
CKKS = {"scheme": "CKKS", "scale_bits": 20, "complex_slots": False, "seeded": True}
#: The header of a case, but for params, key and contributions, and what other cases have instead.
HEADER = {
    "aggregation": AGREED,
    "base": None,
    "calibration": None,
    "epoch": 0,
    "layout": ONE,
    "manifest": None,
    "round": 0,
}
LAST = {"base": "ff" * 32, "epoch": 2**32 - 1, "layout": TWO, "manifest": "0f" * 32, "round": 2**32 - 1}
OTHERS: list[dict[str, Any]] = [
    {"round": 1},
    {"epoch": 1},
    {"layout": TWO},
    {"base": "00" * 32},
    {"base": "00" * 31 + "01"},
    {"manifest": "00" * 32},
    {"aggregation": AGREED | {"max_abs": 2.0}},
    {"aggregation": AGREED | {"max_abs": {"default": 1.0, "w": 2.0}}},
    {"aggregation": AGREED | {"max_weight": 2.0}},
    {"aggregation": AGREED | {"max_clients": 5}},
    {"aggregation": MEASURED, "calibration": "00" * 32},
    {"aggregation": MEASURED, "calibration": "00" * 31 + "01"},
    {"aggregation": MEASURED | {"precision": "previous"}, "calibration": "00" * 32},
]
#: What calibrations have instead.
KINDS = {"update": UPDATE, "calibration": CALIBRATION}
CALIBRATES: dict[str, Any] = {"kind": "calibration", "aggregation": MEASURED}
Site = tuple[str, int, int]
#: Sites with the numbers of nonce and body.
FIRST, SECOND, THIRD = ("site-1", 0, 0), ("site-2", 1, 1), ("site-3", 2, 2)
LONGEST = ("a.B-9_" + "z" * 58, 2, 2)
#: Number of the key, what the header has instead, sites, encrypted words, clear words.
TAGS: list[tuple[int, dict[str, Any], list[Site], list[int], list[int]]] = [
    (0, {}, [FIRST], [], []),
    (0, {}, [FIRST], [1], []),
    (0, {}, [("site-1", 1, 0)], [1], []),
    (0, {}, [("site-1", 0, 1)], [1], []),
    (1, {}, [FIRST], [1], []),
    (0, {}, [("site-2", 0, 0)], [1], []),
    *[(0, other, [FIRST], [1], []) for other in OTHERS],
    (0, {"params": FLASHE | {"rounding": "nearest"}}, [FIRST], [1], []),
    (0, {"params": FLASHE | {"overflow": "clip"}}, [FIRST], [1], []),
    (0, CALIBRATES, [FIRST], [1], []),
    (0, {}, [FIRST], [1, 0], []),
    (0, {}, [FIRST], [2**64 - 1, 2**63, 5], []),
    (0, {}, [FIRST], [2**64 - 1, 7], [-1, 2**62, -(2**63), 3]),
    (0, {}, [FIRST, SECOND, THIRD], [3 * index for index in range(5000)], [-9] * 4096),
    (2, LAST, [LONGEST], [2**64 - 1] * 3000, []),
]


#: What makes the words of `WORD_TAGS`, and the prime behind the data primes.
WORD_STEP, SPECIAL = 0x9E3779B97F4A7C15, SMALL[60]
#: Of tags of ciphertext words: data primes, degree, number of the key, what the header has instead, sites, polynomials.
WORD_TAGS: list[tuple[list[int], int, int, dict[str, Any], list[Site], int]] = [
    ([SMALL[26]], 1024, 0, {}, [FIRST], 0),
    ([SMALL[26]], 1024, 0, {}, [FIRST], 1),
    ([SMALL[26]], 1024, 0, {}, [("site-1", 1, 0)], 1),
    ([SMALL[26]], 1024, 0, {}, [("site-1", 0, 1)], 1),
    ([SMALL[26]], 1024, 1, {}, [FIRST], 1),
    *[([SMALL[26]], 1024, 0, other, [FIRST], 1) for other in OTHERS],
    ([SMALL[26]], 1024, 0, {"params": CKKS | {"scale_bits": 19}}, [FIRST], 1),
    ([SMALL[26]], 1024, 0, CALIBRATES, [FIRST], 1),
    ([LARGE[53]], 2048, 0, {}, [("site-2", 0, 0)], 2),
    ([LARGE[60], SMALL[36], LARGE[40]], 8192, 0, {}, [FIRST, SECOND, THIRD], 4),
    ([SMALL[60]], 4096, 2, LAST, [LONGEST], 40),
]


def tags() -> dict[str, Any]:
    """The content of tags.json."""
    about = (
        "tags, α, β and r in hexadecimal, key is the root, common the common digest, which is that of the header of an "
        "update or calibration as it stands here; of integers the encrypted words are unsigned, the clear ones signed; "
        "of ciphertext words, word j modulo the prime of index i of polynomial B is (step·(j + 1) + B + i)² modulo it; "
        " BLAKE3 is that of β and of α as little-endian u64, and the words of the key are zero"
    )
    return {
        "about": about,
        "cases": [_tag(*case) for case in TAGS],
        "word_cases": [_word_tags(*case) for case in WORD_TAGS],
    }


def _tag(key: int, other: dict[str, Any], sites: list[Site], encrypted: list[int], clear: list[int]) -> dict[str, Any]:
    root, header = _bytes32("key", key), HEADER | {"params": FLASHE, "contributions": []} | other
    kind = header.pop("kind", "update")
    header["key"] = fingerprint(header | {"primes": [], "plain_modulus": 0}, root)
    place = tail_by_hand.Place(root, header, KINDS[kind])
    contributions = [(site, _bytes32("tag nonce", nonce), _bytes32("tag body", body)) for site, nonce, body in sites]
    alpha, pads = tail_by_hand.point(place), [tail_by_hand.pad(place, *item) for item in contributions]
    return {
        "key": root.hex(),
        "kind": kind,
        "header": header,
        "common": place.common.hex(),
        "contributions": [[site, nonce.hex()] for site, nonce, _ in contributions],
        "bodies": [body.hex() for *_, body in contributions],
        "alpha": f"{alpha:032x}",
        "pads": [f"{pad:032x}" for pad in pads],
        "encrypted": _runs(encrypted),
        "clear": _runs(clear),
        "tag": f"{tail_by_hand.tag(alpha, encrypted + clear, pads):032x}",
    }


def _word_tags(
    primes: list[int], degree: int, key: int, other: dict[str, Any], sites: list[Site], polynomials: int
) -> dict[str, Any]:
    root, chain = _bytes32("key", key), primes if len(primes) == 1 else [*primes, SPECIAL]
    header = HEADER | {"params": CKKS, "contributions": []} | other
    kind, bits = header.pop("kind", "update"), [prime.bit_length() for prime in chain]
    header["params"] = header["params"] | {"poly_modulus_degree": degree, "coeff_mod_bit_sizes": bits}
    payload = root + bytes(24 * degree * len(chain))
    header["key"] = fingerprint(header | {"primes": chain, "plain_modulus": 0}, payload)
    place = tail_by_hand.Place(root, header, KINDS[kind])
    contributions = [(site, _bytes32("tag nonce", nonce), _bytes32("tag body", body)) for site, nonce, body in sites]
    made = []
    for element in tail_by_hand.elements(primes):
        prime, pads = element.prime, [tail_by_hand.word_pad(place, element, *item) for item in contributions]
        beta, alpha = tail_by_hand.multipliers(place, element, degree, polynomials)
        rows = [
            [(WORD_STEP * (j + 1) + polynomial + element.index) ** 2 % prime for j in range(degree)]
            for polynomial in range(polynomials)
        ]
        made.append(
            {
                "prime": prime,
                "index": element.index,
                "k": element.k,
                "beta": [f"{word:x}" for word in beta[:2] + beta[-2:]],
                "alpha": [f"{word:x}" for word in alpha[:2] + alpha[-2:]],
                "blake3": [blake3(struct.pack(f"<{len(its)}Q", *its)).hexdigest() for its in (beta, alpha)],
                "pads": [f"{pad:x}" for pad in pads],
                "tag": f"{tail_by_hand.word_tag(prime, beta, alpha, rows, pads):x}",
            }
        )
    return {
        "key": root.hex(),
        "kind": kind,
        "header": header,
        "common": place.common.hex(),
        "contributions": [[site, nonce.hex()] for site, nonce, _ in contributions],
        "bodies": [body.hex() for *_, body in contributions],
        "primes": chain,
        "polynomials": polynomials,
        "step": WORD_STEP,
        "elements": made,
    }


def _runs(words: list[int]) -> list[list[int]]:
    """Words as [first, step, count]."""
    if len(words) > 100:
        step = words[1] - words[0]
        assert words == [words[0] + step * index for index in range(len(words))]
        return [[words[0], step, len(words)]]
    return [[word, 0, 1] for word in words]
