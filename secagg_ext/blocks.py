"""The shape of a block of words: rows of `n` words, each row modulo one number and packed to that number's bits."""

from __future__ import annotations

import sys

LARGEST_MODULUS = 2**64


def widths(moduli: tuple[int, ...]) -> tuple[int, ...]:
    """Bits of a word of each row: ``(q - 1).bit_length()``, what the largest word below `q` needs.

    Raises
    ------
    TypeError
        `moduli` is not a tuple of ints.
    ValueError
        `moduli` is empty, or a modulus lies outside 2 … 2**64.
    """
    if not isinstance(moduli, tuple):
        raise TypeError(f"moduli must be a tuple of ints, not {type(moduli).__name__}")
    if not moduli:
        raise ValueError("moduli is empty: a block has at least one row")
    for q in moduli:
        if type(q) is not int:
            raise TypeError(f"a modulus must be an int, not {type(q).__name__}")
        if not 2 <= q <= LARGEST_MODULUS:
            raise ValueError(f"modulus {q} is outside 2 … 2**64")
    return tuple((q - 1).bit_length() for q in moduli)


def block_nbytes(moduli: tuple[int, ...], n: int) -> int:
    """Bytes of one bit-packed block.

    Parameters
    ----------
    moduli
        The modulus of each row, 2 … 2**64.
    n
        Words a row, a positive multiple of 8, so that every row is whole bytes.

    Raises
    ------
    TypeError, ValueError
        As `widths`, or `n` is no positive multiple of 8.
    """
    if type(n) is not int:
        raise TypeError(f"n must be an int, not {type(n).__name__}")
    if not 0 < n <= sys.maxsize or n % 8:
        raise ValueError(f"n is {n}: words a row must be a positive multiple of 8")
    return sum(widths(moduli)) * n // 8
