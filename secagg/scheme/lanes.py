"""Several quantised values in one plaintext word: how wide a lane must be, and how many fit.

A value q of −L … L is stored as q + L, so the sum of n values is at most 2·L·n: a lane of as many bits can neither
carry into its neighbour nor borrow from it.
"""

from __future__ import annotations

from typing import NamedTuple


def lane_bits(limit: int, sites: int) -> int:
    """Return the bits of a lane that holds the sum of `sites` values of magnitude at most `limit`."""
    return (2 * limit * sites).bit_length()


def largest_word(limit: int, sites: int, lanes: int) -> int:
    """Return the largest sum of a word of `lanes` lanes."""
    return sum(2 * limit * sites << lane * lane_bits(limit, sites) for lane in range(lanes))


def lanes_below(modulus: int, limit: int, sites: int) -> int:
    """Return how many lanes a word modulo `modulus` has room for; 0 if not even one sum fits."""
    lanes = 0
    while largest_word(limit, sites, lanes + 1) < modulus:
        lanes += 1
    return lanes


class Lanes(NamedTuple):
    """How quantised values lie in a block of words.

    Value v of a block is in lane v // words of word v % words.

    Parameters
    ----------
    words : int
        Words a block.
    per_word : int
        Lanes a word.
    bits : int
        Bits a lane.
    limit : int
        Largest magnitude of a value.
    """

    words: int
    per_word: int
    bits: int
    limit: int

    @property
    def block_values(self) -> int:
        """Values a block."""
        return self.words * self.per_word
