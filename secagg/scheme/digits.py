"""Whole numbers as digits, each of which fits a lane: of weights and scales, and of tensors that need many bits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

#: Values of small tensors, norms, biases, running statistics, have at least so many levels.
MIN_LEVELS = 2**20 - 1

#: Of so many encrypted values, at most one takes several lanes.
VALUES_A_SMALL_ONE = 20


class Digits:
    """Numbers of 0 … 2**bits − 1 as digits below a power of two, lowest first.

    Parameters
    ----------
    bits : int
        Bits of a number.
    limit : int
        Largest digit, 2**k − 1.
    """

    def __init__(self, bits: int, limit: int) -> None:
        self._width, self._limit = limit.bit_length(), limit
        self.count = -(-bits // self._width)

    @property
    def largest(self) -> int:
        """The largest number."""
        return (1 << self.count * self._width) - 1

    def split(self, number: int) -> list[int]:
        """Return the digits of a number."""
        return [number >> self._width * place & self._limit for place in range(self.count)]

    def join(self, digits: Sequence[float]) -> int:
        """Return the sum of numbers from the sums of their digits."""
        return sum(int(digit) << self._width * place for place, digit in enumerate(digits))


def lanes_a_value(limit: int) -> int:
    """Return how many balanced digits of −limit … limit have `MIN_LEVELS`."""
    lanes = 1
    while (2 * limit + 1) ** lanes < MIN_LEVELS:
        lanes += 1
    return lanes


def small_tensors(shapes: Sequence[tuple[int, ...]]) -> list[bool]:
    """Return which of the encrypted tensors take several lanes a value.

    Those of at most one dimension, smallest first, as long as they are together at most one in `VALUES_A_SMALL_ONE`.
    """
    sizes = [math.prod(shape) for shape in shapes]
    room = sum(sizes) // VALUES_A_SMALL_ONE
    chosen = [False] * len(shapes)
    for index in sorted(range(len(shapes)), key=lambda index: sizes[index]):
        if len(shapes[index]) <= 1:
            room -= sizes[index]
            if room < 0:
                break
            chosen[index] = True
    return chosen


def split_balanced(numbers: NDArray[np.float64], limit: int, lanes: int) -> list[NDArray[np.float32]]:
    """Return whole numbers as `lanes` arrays of digits of −limit … limit, lowest first; they are changed."""
    base = 2 * limit + 1
    digits = []
    for _ in range(lanes):
        above = np.rint(numbers / base)  # base is odd: there are no ties
        digits.append((numbers - above * base).astype(np.float32))
        numbers = above
    return digits


def join_balanced(digits: Sequence[NDArray[np.float64]], limit: int) -> NDArray[np.float64]:
    """Return the numbers that arrays of digits, or of sums of digits, stand for."""
    base, total = 2 * limit + 1, np.zeros_like(digits[0])
    for array in reversed(digits):
        total = total * base + array
    return total
