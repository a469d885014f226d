"""Which numbers the encrypted section of an update or aggregate holds, written from docs/wire-format.md alone."""

from __future__ import annotations

from math import ceil, prod
from typing import Any, NamedTuple

#: Bins of a tensor; the next number says that nothing has been measured.
BINS = 192


def sent(header: dict[str, Any]) -> list[list[Any]]:
    """The float tensors of a layout."""
    return [spec for spec in header["layout"] if spec[3] != "local"]


def encrypted(header: dict[str, Any]) -> list[list[Any]]:
    return [spec for spec in header["layout"] if spec[3] == "encrypted"]


class Numbers(NamedTuple):
    """How many numbers of each sort the encrypted section has, in this order; CKKS has but weight and values."""

    weight: int
    count: int
    bins: int
    counts: int
    small: int
    other: int

    @classmethod
    def of(cls, header: dict[str, Any]) -> Numbers:
        """Those of an update or aggregate."""
        params, numbers, tensors = header["params"], header["aggregation"], len(sent(header))
        sizes = [prod(shape) for _, _, shape, *_ in encrypted(header)]
        if params["scheme"] == "CKKS":
            return cls(1, 0, 0, 0, 0, sum(sizes))
        measured = numbers["precision"] != "fixed"
        small = sum(size for size, is_small in zip(sizes, small_ones(header), strict=True) if is_small)
        return cls(
            weight=weight_digits(params, measured),
            count=1,
            bins=measured * tensors * bin_digits(params),
            counts=(numbers["precision"] == "previous") * tensors * BINS,
            small=small * digits_a_value(params),
            other=sum(sizes) - small,
        )


def small_ones(header: dict[str, Any]) -> list[bool]:
    """Which of the encrypted tensors take several digits a value."""
    sizes = [prod(shape) for _, _, shape, *_ in encrypted(header)]
    flat = [index for index, (_, _, shape, *_) in enumerate(encrypted(header)) if len(shape) <= 1]
    chosen, room = set(), sum(sizes)
    for index in sorted(flat, key=lambda index: (sizes[index], index)):
        room -= 20 * sizes[index]
        if room < 0:
            break
        chosen.add(index)
    return [index in chosen for index in range(len(sizes))]


def limit_of(params: dict[str, Any]) -> int:
    """The largest number that a lane of an update of an exact scheme adds; of a calibration it is 1."""
    return 2 ** (params.get("value_bits", 2) - 1) - 1


def weight_digits(params: dict[str, Any], measured: bool) -> int:
    """Digits of the weight in exact schemes; a 1 that counts the sites follows them."""
    return ceil((80 if measured else 40) / (params["value_bits"] - 1))


def bin_digits(params: dict[str, Any]) -> int:
    """Digits of the bin of a tensor."""
    return ceil(8 / (params["value_bits"] - 1))


def digits_a_value(params: dict[str, Any]) -> int:
    """Digits of a value of a small tensor."""
    base, count = 2 * limit_of(params) + 1, 1
    while base**count < 2**20 - 1:
        count += 1
    return count
