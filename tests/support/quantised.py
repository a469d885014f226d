"""What quantisation must compute, written from the documentation alone; and updates with another header.

Under a ``max_abs``, an update of weight w = `fraction` · ``max_weight`` holds, in lanes, the weight's digits and then
z = round(x · fraction · L / ``max_abs``) of every value: first those of small tensors, several digits each, whose L is
larger. Nothing here is taken from `secagg.scheme` or the kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from io import BytesIO
from typing import Any

import numpy as np
import section_numbers
from federation import twin_of

import secagg
from secagg.wire.tail import Proof, Tail
from secagg.wire.update import UpdateWriter


def limit_of(value_bits: int, small: bool = False) -> int:
    """Largest quantised value; that of a small tensor takes several digits."""
    digits = small_digits(value_bits) if small else 1
    return ((2**value_bits - 1) ** digits - 1) // 2


def weight_digits(value_bits: int) -> int:
    """Digits of the weight; a 1 that counts the sites, and then the tensors, follow them."""
    return section_numbers.weight_digits({"value_bits": value_bits}, measured=False)


def small_digits(value_bits: int) -> int:
    """Digits of a value of a small tensor."""
    return section_numbers.digits_a_value({"value_bits": value_bits})


def small_ones(shapes: Sequence[tuple[int, ...]]) -> list[bool]:
    """Which tensors are small, of these that are encrypted."""
    layout = [[[str(index)], "float32", list(shape), "encrypted", False] for index, shape in enumerate(shapes)]
    return section_numbers.small_ones({"layout": layout})


def weight_of(fraction: float, value_bits: int) -> Fraction:
    """What the weight, a fraction of ``max_weight``, is rounded to."""
    unit = 2 ** (weight_digits(value_bits) * (value_bits - 1)) - 1
    return Fraction(round(fraction * unit), unit)


def dither(seed: int, position: int) -> float:
    """Noise of -1/2 … 1/2: SplitMix64, an output for two positions, 24 bits of it for each."""
    mask = 2**64 - 1
    h = (seed + 0x9E3779B97F4A7C15 * (position // 2 + 1)) & mask
    h = (h ^ h >> 30) * 0xBF58476D1CE4E5B9 & mask
    h = (h ^ h >> 27) * 0x94D049BB133111EB & mask
    h ^= h >> 31
    bits = h >> 40 if position % 2 else (h & 0xFFFFFFFF) >> 8
    return (bits + 0.5) / 2**24 - 0.5


def quantised(
    values: Any,
    fraction: float,
    bound: float,
    value_bits: int,
    seed: int | None = None,
    first: int = 0,
    small: bool = False,
) -> np.ndarray[Any, Any]:
    """The integers of one tensor, whose first value is at position `first` behind the weight.

    Those of a small one are rounded to the nearest in any case.
    """
    limit = limit_of(value_bits, small)
    scaled = np.asarray(values, dtype=np.float64).reshape(-1) * (fraction * limit / bound)
    if seed is not None and not small:
        first += weight_digits(value_bits) + 1
        scaled = scaled + [dither(seed, first + index) for index in range(scaled.size)]
    return np.rint(scaled).clip(-limit, limit).astype(np.int64)


def mean_of(
    sums: np.ndarray[Any, Any],
    fractions: Sequence[float],
    bound: float,
    value_bits: int,
    max_weight: float = 1.0,
    small: bool = False,
) -> Any:
    """The mean that sums of integers mean, in float64, from the sum of the rounded weights."""
    total = float(sum(weight_of(fraction, value_bits) for fraction in fractions)) * max_weight
    return sums * (bound * max_weight / limit_of(value_bits, small) / total)


def renamed(site: secagg.Client, name: str) -> secagg.Client:
    """The same site under another name; a thousand of them share one context of the library."""
    twin = twin_of(site)
    twin._name = name
    return twin


def rebuilt(update: secagg.Update, **changes: Any) -> secagg.Update:
    """An update, a calibration or a sum, same frames and tags, behind a changed header, unsigned, every digest right.

    An aggregate has the body digests that it had of each site.
    """
    header, tags = replace(update.header, **changes), update.tail.tags
    stream = BytesIO()
    writer = UpdateWriter(stream, header)
    for frame, payload in update.frames():
        writer.write(frame, payload)
    if header.kind in ("update", "calibration") and len(header.contributions) == 1:
        writer.finish(lambda _: tags, None)
    else:
        bodies = dict(zip(update.header.sites, (proof.body for proof in update.tail.proofs), strict=True))
        proofs = tuple(Proof(bodies.get(site, bytes(32))) for site in header.sites)
        stream.write(Tail(tags, proofs).pack(header.head, header.frame_count))
    return secagg.Update.from_bytes(stream.getvalue())
