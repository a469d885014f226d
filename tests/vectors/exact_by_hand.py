"""Exact schemes once more, from docs/wire-format.md: what the numbers of a sum mean, and where scales come from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import by_hand
from container import CLEAR_WORDS, Container, fraction_bits, unpack
from section_numbers import BINS, Numbers, bin_digits, digits_a_value, encrypted, limit_of, sent, small_ones
from tail_by_hand import flatten

#: The bound of weights where no `max_weight` is given.
MAX_WEIGHT = Fraction(2**40)


@dataclass
class Exact:
    """What an update or aggregate says: exactly, but that bounds are doubles. Tensors have their first names."""

    weight: Fraction
    bins: list[int] | None
    counts: list[list[int]] | None
    sums: dict[str, list[int]]
    levels: dict[str, int]
    bounds: dict[str, float]
    words: dict[str, list[int]]
    fraction_bits: int

    def mean(self, name: str) -> list[Fraction]:
        """The mean of a tensor."""
        bound = Fraction(self.bounds[name]) / self.weight
        if name in self.words:
            return [Fraction(word, 2**self.fraction_bits) * bound for word in self.words[name]]
        return [Fraction(total, self.levels[name]) * bound for total in self.sums[name]]


def decode(container: Container, key: Container) -> Exact:
    """Decode an update or aggregate of FLASHE, or an aggregate of BGV."""
    header, params = container.header, container.header["params"]
    aggregation, tensors, limit = header["aggregation"], sent(header), limit_of(params)
    sites, parts, at = len(header["contributions"]), [], 0
    every = by_hand.sums(container, key, sum(Numbers.of(header)))
    for count in Numbers.of(header):
        parts.append(every[at : at + count])
        at += count
    weight, (count,), bins, counts, small, other = parts
    assert count == sites
    most = most_of(aggregation)
    total = most * joined(weight, limit + 1) / ((limit + 1) ** len(weight) - 1)
    assert 0 < total <= sites * most
    names = [spec[0][0] for spec in tensors]
    measured = None
    if aggregation["precision"] == "fixed":
        bounds = {name: bound_of(aggregation, name) for name in names}
    else:
        measured = [total_bin // sites for total_bin in chunked_sums(bins, bin_digits(params), limit + 1)]
        assert [sites * item for item in measured] == chunked_sums(bins, bin_digits(params), limit + 1)
        assert max(measured) < BINS or set(measured) == {BINS}
        bounds = {name: bound(item) for name, item in zip(names, measured, strict=True)}
    sums, levels = {}, {}
    digits, count = len(small) // digits_a_value(params), digits_a_value(params)
    values = [joined(small[place::digits], 2 * limit + 1) for place in range(digits)]
    for (names_of, _, shape, *_), is_small in zip(encrypted(header), small_ones(header), strict=True):
        size, source = math.prod(shape), values if is_small else other
        sums[names_of[0]] = [source.pop(0) for _ in range(size)]
        levels[names_of[0]] = ((2 * limit + 1) ** count - 1) // 2 if is_small else limit
    assert not values
    assert not other
    clear = [word - (word >> 63 << 64) for payload in container.payloads[1:] for word in unpack(payload, 64)]
    words = {}
    for names_of, _, shape, role, _ in tensors:
        if role == "clear":
            words[names_of[0]] = [clear.pop(0) for _ in range(math.prod(shape))]
    assert len(clear) < CLEAR_WORDS
    assert not any(clear)
    rows = [counts[start : start + BINS] for start in range(0, len(counts), BINS)] or None
    for row in rows or ():
        assert min(row) >= 0
        assert sum(row) <= sites
    return Exact(total, measured, rows, sums, levels, bounds, words, fraction_bits(aggregation))


def counts_of(container: Container, key: Container) -> list[list[int]]:
    """What a calibration, or scales, count."""
    sites = len(container.header["contributions"])
    count, *counts = by_hand.sums(container, key, 1 + BINS * len(sent(container.header)))
    assert count == sites
    rows = [counts[start : start + BINS] for start in range(0, len(counts), BINS)]
    assert all(min(row) >= 0 and sum(row) <= sites for row in rows)
    return rows


def check_update(container: Container, exact: Exact, state: dict[str, Any], weight: float) -> None:
    """Hold what an update says against the values of its site, which have left nothing to feed back."""
    header, params = container.header, container.header["params"]
    most = most_of(header["aggregation"])
    unit = 2 ** ((params["value_bits"] - 1) * Numbers.of(header).weight) - 1
    assert exact.weight == most * Fraction(round(weight / float(most) * unit), unit)
    if exact.counts:
        assert exact.counts == one_hot(header, state, weight)
    for name, numbers in exact.sums.items():
        levels, bound = exact.levels[name], exact.bounds[name]
        if params["rounding"] == "stochastic" and levels == limit_of(params):
            continue
        for value, number in zip(flatten(state[name]), numbers, strict=True):
            exactly = Fraction(weight * value) * levels / Fraction(bound) if bound else 0
            off = abs(number - min(max(exactly, -levels), levels))
            assert off <= Fraction(1, 2) + Fraction(1, 2**20)  # doubles do not find all ties
    for name, words in exact.words.items():
        bound = exact.bounds[name]
        for value, word in zip(flatten(state[name]), words, strict=True):
            assert word == (round(weight * value / bound * 2**exact.fraction_bits) if bound else 0)


def one_hot(header: dict[str, Any], state: dict[str, Any], weight: float) -> list[list[int]]:
    """What a site counts that has nothing to feed back."""
    rows = [[0] * BINS for _ in sent(header)]
    for row, (names, *_) in zip(rows, sent(header), strict=True):
        number = bin_of(max((abs(weight * value) for value in flatten(state[names[0]])), default=0.0))
        if number is not None:
            row[number] = 1
    return rows


def shown(counts: list[list[int]]) -> list[list[list[int]]]:
    """Of each tensor the bins that are not 0, with their counts."""
    return [[[number, count] for number, count in enumerate(row) if count] for row in counts]


def joined(digits: list[int], base: int) -> int:
    """The number of digits, lowest first."""
    return sum(digit * base**place for place, digit in enumerate(digits))


def chunked_sums(digits: list[int], width: int, base: int) -> list[int]:
    """The numbers of so many digits each."""
    return [joined(digits[start : start + width], base) for start in range(0, len(digits), width)]


def most_of(aggregation: dict[str, Any]) -> Fraction:
    """The largest weight."""
    return MAX_WEIGHT if aggregation["max_weight"] is None else Fraction(aggregation["max_weight"])


def bound_of(aggregation: dict[str, Any], name: str) -> float:
    """What a weighted value of a tensor may be, where that is fixed; patterns are names here."""
    bounds = aggregation["max_abs"]
    largest = bounds.get(name, bounds.get("default")) if isinstance(bounds, dict) else bounds
    return largest * aggregation["max_weight"]


# Scales.


def bound(number: int) -> float:
    """The bound of a bin; 0 where nothing has been measured."""
    half = (number - 103) / 2
    return 0.0 if number == BINS else math.ldexp(math.sqrt(2) if half % 1 else 1.0, math.floor(half))


def bin_of(largest: float) -> int | None:
    """The bin in which a site counts a tensor."""
    if largest == 0:
        return None
    return next((number for number in range(BINS) if bound(number) >= largest), BINS - 1)


def measured(counts: list[list[int]]) -> list[int]:
    """The bins that a sum of counts gives."""
    found = [max((number for number, count in enumerate(row) if count), default=None) for row in counts]
    known = sorted(number for number in found if number is not None)
    other = known[(len(known) - 1) // 2] if known else 103
    return [other if number is None else number for number in found]


def following(bins: list[int], counts: list[list[int]], small: list[bool]) -> list[int]:
    """Those of the next round, with `previous`; `small` says of all tensors that are sent which ones are so."""
    found = []
    for number, before, is_small in zip(measured(counts), bins, small, strict=True):
        raised = min(number + (4 if is_small else 1), BINS - 1)
        found.append(raised if is_small or before == BINS else max(raised, before - 2))
    return found


def small_sent(header: dict[str, Any]) -> list[bool]:
    """Which of the tensors that are sent are small."""
    flags = iter(small_ones(header))
    return [role == "encrypted" and next(flags) for *_, role, _ in sent(header)]


def name_of(header: dict[str, Any], key: Container, bins: list[int]) -> str:
    """What names these bins in the headers of a round, with `previous`."""
    base = b"" if header["base"] is None else bytes.fromhex(header["base"])
    fields = (header["key"], header["epoch"], header["round"], base, bytes(bins))
    return by_hand.derive(by_hand.root_of(key), by_hand.info_of("secagg scales v1", *fields)).hex()
