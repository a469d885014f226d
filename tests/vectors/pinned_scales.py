"""Where scales come from and what the encrypted section holds, in cases without ciphertexts; all computed by hand."""

from __future__ import annotations

import hashlib
import math
import struct
from typing import Any

import by_hand
import exact_by_hand
from container import CALIBRATION, UPDATE, fingerprint, frame_sizes, lanes
from section_numbers import BINS, Numbers, digits_a_value, sent, small_ones

#: Magnitudes: the ends of doubles and float32, powers of two, of √2, and their neighbours.
MAGNITUDES = [
    0.0,
    5e-324,
    2.0**-149,
    2.0**-52,
    2.0**-51.5,
    1e-8,
    0.1,
    3.0,
    1e10,
    2.0**44,
    1e300,
    1.7976931348623157e308,
]
MAGNITUDES += [near for power in (-51, -1, 0, 1, 43) for near in (2.0**power, math.nextafter(2.0**power, math.inf))]
MAGNITUDES += [
    near
    for power in (-51, -1, 0, 42)
    for root in (math.ldexp(math.sqrt(2), power),)
    for near in (math.nextafter(root, 0), root, math.nextafter(root, math.inf))
]

#: Counts of tensors, as bins that are not 0 with their counts, the bins that they were made under, and which are small.
COUNTS: list[tuple[list[list[list[int]]], list[int], list[bool]]] = [
    ([[[103, 2]]], [BINS], [False]),
    ([[[103, 2]]], [BINS], [True]),
    ([[[3, 1], [90, 1], [91, 1]], [], [[191, 3]]], [BINS] * 3, [False] * 3),
    ([[[10, 1]], [], [[20, 1]], [[30, 1]], [[41, 1]]], [9, 0, 30, 32, 43], [False] * 5),
    ([[[10, 1]], [], [[20, 1]], [[30, 1]], [[41, 1]]], [9, 0, 30, 32, 43], [True, True, True, False, True]),
    ([[], []], [BINS] * 2, [False, True]),
    ([[], []], [0, 191], [False, True]),
    ([[[0, 1]], [[190, 1]], [[191, 1]]], [2, 191, 191], [False] * 3),
    ([[[187, 1]], [[188, 1]], [[191, 1]]], [191, 0, 0], [True] * 3),
]

#: Number of the key, epoch, round, base and bins.
NAMES: list[tuple[int, int, int, str | None, list[int]]] = [
    (0, 0, 0, None, [BINS] * 3),
    (0, 0, 1, None, [1, 2, 3]),
    (0, 0, 1, "00" * 32, [1, 2, 3]),
    (1, 0, 1, "00" * 32, [1, 2, 3]),
    (0, 1, 1, "00" * 32, [1, 2, 3]),
    (0, 2**32 - 1, 2**32 - 1, "ab" * 32, [0, 191] * 500),
]

FLASHE = {"scheme": "FLASHE", "rounding": "nearest", "overflow": "clip", "error_feedback": True}
BGV = FLASHE | {
    "scheme": "BGV",
    "poly_modulus_degree": 4096,
    "coeff_mod_bit_sizes": [53],
    "plain_modulus_bits": 28,
    "seeded": True,
}
FIXED = {"max_abs": 1.0, "max_weight": 1.0, "precision": "fixed"}
AUTO = {"max_abs": None, "max_weight": None, "precision": "auto"}
PREVIOUS = AUTO | {"precision": "previous"}
#: Shapes and roles.
TENSORS: dict[str, list[tuple[list[int], str]]] = {
    "none small": [([7], "encrypted"), ([2, 3], "encrypted"), ([], "clear")],
    "just a twentieth": [([5], "encrypted"), ([19, 5], "encrypted")],
    "one beyond": [([5], "encrypted"), ([94], "encrypted")],
    "of equal ones the first": [([3], "encrypted"), ([3], "encrypted"), ([100, 1], "encrypted"), ([3], "clear")],
    "one value": [([], "encrypted"), ([1, 1], "encrypted"), ([30, 1], "encrypted"), ([0], "encrypted")],
    "clear ones do not count": [([2], "encrypted"), ([38], "clear"), ([2, 2], "encrypted"), ([2], "local")],
    "many": [([64], "encrypted"), ([64, 3, 9], "encrypted"), ([64], "clear"), ([64], "encrypted")] * 3,
}
#: Params, bits, `aggregation` and `max_clients`.
SECTIONS = [
    (FLASHE, 3, AUTO, 2),
    (FLASHE, 6, AUTO, 30),
    (FLASHE, 7, PREVIOUS, 10_000),
    (FLASHE, 19, FIXED, 5),
    (FLASHE, 20, PREVIOUS | {"max_weight": 100.0}, 3),
    (FLASHE, 24, AUTO | {"max_weight": 0.5}, 10_000),
    (BGV, 6, AUTO, 3),
    (BGV, 9, PREVIOUS, 100),
    (BGV, 11, FIXED, 4),
]


def scales() -> dict[str, Any]:
    """The content of scales.json."""
    about = (
        "bounds of bins, and the bins of magnitudes, both as doubles in hexadecimal, big-endian; of counts, tensor by "
        "tensor the bins that are not 0, what they measure, and what follows from it, the bins, and what is small; "
        "names with `previous`, key is the root of FLASHE's; numbers of the encrypted section by the sorts of the "
        "format, the tensors in it that are small, and payload sizes of frames, of an update and of a calibration"
    )
    return {
        "about": about,
        "bounds": [_double(exact_by_hand.bound(number)) for number in range(BINS)],
        "bins": [[_double(magnitude), exact_by_hand.bin_of(magnitude)] for magnitude in MAGNITUDES],
        "counts": [_counts(*case) for case in COUNTS],
        "names": [_name(*case) for case in NAMES],
        "sections": [_section(*case, name) for case in SECTIONS for name in TENSORS],
    }


def _counts(shown: list[list[list[int]]], bins: list[int], small: list[bool]) -> dict[str, Any]:
    rows = [[dict(map(tuple, its)).get(number, 0) for number in range(BINS)] for its in shown]
    measured, following = exact_by_hand.measured(rows), exact_by_hand.following(bins, rows, small)
    return {"counts": shown, "bins": bins, "small": small, "measured": measured, "next": following}


def _name(key: int, epoch: int, round: int, base: str | None, bins: list[int]) -> dict[str, Any]:
    root = hashlib.sha256(f"secagg vectors key {key}".encode()).digest()
    name = fingerprint({"params": {"scheme": "FLASHE"}, "primes": [], "plain_modulus": 0, "epoch": epoch}, root)
    fields = (epoch, round, b"" if base is None else bytes.fromhex(base), bytes(bins))
    derived = by_hand.derive(root, by_hand.info_of("secagg scales v1", name, *fields))
    return {"key": root.hex(), "epoch": epoch, "round": round, "base": base, "bins": bins, "name": derived.hex()}


def _section(params: dict[str, Any], bits: int, aggregation: dict[str, Any], clients: int, name: str) -> dict[str, Any]:
    layout = [
        [[f"t{index}"], "int64" if role == "local" else "float32", shape, role, False]
        for index, (shape, role) in enumerate(TENSORS[name])
    ]
    header = {
        "params": params | {"value_bits": bits},
        "aggregation": aggregation | {"max_clients": clients},
        "layout": layout,
    }
    kinds = {"update": UPDATE, "calibration": CALIBRATION}
    if aggregation["precision"] != "auto":
        del kinds["calibration"]
    shape = lanes(header["params"], header["aggregation"])
    return {
        "name": name,
        **header,
        "lanes": [shape.words, shape.per_word, shape.bits],
        "numbers": Numbers.of(header)._asdict(),
        "digits_a_value": digits_a_value(header["params"]),
        "small": small_ones(header),
        "sent": len(sent(header)),
        "frames": {kind: list(frame_sizes(number, header, 0)) for kind, number in kinds.items()},
    }


def _double(value: float) -> str:
    return struct.pack(">d", value).hex()
