"""Words of ciphertexts, bit-packed to the width of their modulus.

A block is one row of `n` words for each of its `moduli`, one row after another; arrays hold any number of whole
blocks. Packed, a row is a little-endian bit stream in which word i has the bits ``[i * b, (i + 1) * b)``, with
``b = (q - 1).bit_length()`` for the row's modulus q, 2 … 2**64. `n` is a multiple of 8, so a row is ``n * b // 8``
whole bytes.

All functions raise `TypeError` for a wrong type or dtype and `ValueError` for arrays that are not 1-D, contiguous,
writable where they are written to, of matching lengths and apart in memory, and then write nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from secagg_ext import checks
from secagg_ext.blocks import block_nbytes, widths

Packed = NDArray[np.uint8]
Words = NDArray[np.uint64]


def pack_words(words: Words, moduli: tuple[int, ...], n: int, out: Packed) -> int:
    """Pack words to the bits of their modulus.

    Parameters
    ----------
    words
        uint64, ``k * len(moduli) * n`` words.
    moduli, n
        The modulus of each row of a block, and the words of a row.
    out
        uint8, ``k * block_nbytes(moduli, n)`` bytes, filled whole: of a word that is too large, the low bits.

    Returns
    -------
    int
        Index in `words` of the first word that is not below its modulus, or -1.
    """
    checks.pack_words(words, moduli, n, out)
    found = -1
    for q, bits, first, span in _rows(out.size, moduli, n):
        row = words[first : first + n]
        out[span] = _pack(row, bits)
        found = _first(row, q, first) if found < 0 else found
    return found


def unpack_words(packed: Packed, moduli: tuple[int, ...], n: int, out: Words) -> int:
    """Unpack what `pack_words` packed.

    Parameters
    ----------
    packed
        uint8, ``k * block_nbytes(moduli, n)`` bytes.
    moduli, n
        The modulus of each row of a block, and the words of a row.
    out
        uint64, ``k * len(moduli) * n`` words, filled whole.

    Returns
    -------
    int
        Index in `out` of the first word that is not below its modulus, or -1.
    """
    checks.unpack_words(packed, moduli, n, out)
    found = -1
    for q, bits, first, span in _rows(packed.size, moduli, n):
        row = out[first : first + n]
        row[:] = _unpack(packed[span], bits)
        found = _first(row, q, first) if found < 0 else found
    return found


def check_words(packed: Packed, moduli: tuple[int, ...], n: int) -> int:
    """Index of the first packed word that is not below its modulus, counted in words, or -1.

    Parameters
    ----------
    packed
        uint8, ``k * block_nbytes(moduli, n)`` bytes.
    moduli, n
        The modulus of each row of a block, and the words of a row.
    """
    checks.check_words(packed, moduli, n)
    for q, bits, first, span in _rows(packed.size, moduli, n):
        found = _first(_unpack(packed[span], bits), q, first)
        if found >= 0:
            return found
    return -1


def add_words(acc: Packed, packed: Packed, moduli: tuple[int, ...], n: int) -> int:
    """Add packed words to packed words, modulo each row's modulus, in place.

    Parameters
    ----------
    acc, packed
        uint8, ``k * block_nbytes(moduli, n)`` bytes each. The words of `acc` must be below their moduli; where those
        of `packed` are not, the sums mean nothing.
    moduli, n
        The modulus of each row of a block, and the words of a row.

    Returns
    -------
    int
        Index of the first word of `packed` that is not below its modulus, counted in words, or -1.
    """
    checks.add_words(acc, packed, moduli, n)
    found = -1
    for q, bits, first, span in _rows(acc.size, moduli, n):
        x, y = _unpack(acc[span], bits), _unpack(packed[span], bits)
        total = x + y  # uint64 wraps, which is all that the modulus 2**64 asks for
        if q < 2**64:
            modulus = np.uint64(q)
            total = np.where(x >= modulus - y, total - modulus, total)
        acc[span] = _pack(total, bits)
        found = _first(y, q, first) if found < 0 else found
    return found


def _rows(nbytes: int, moduli: tuple[int, ...], n: int) -> Iterator[tuple[int, int, int, slice]]:
    """Modulus, bits, index of the first word and packed bytes of each row of `nbytes` bytes of blocks."""
    bits = widths(moduli)
    first = begin = 0
    for _ in range(nbytes // block_nbytes(moduli, n)):
        for q, b in zip(moduli, bits, strict=True):
            end = begin + n * b // 8
            yield q, b, first, slice(begin, end)
            first, begin = first + n, end


def _pack(row: Words, bits: int) -> Packed:
    """Bytes of a row: each word's 64 bits, the low ones first, cut to `bits`."""
    each = np.unpackbits(row.view(np.uint8).reshape(-1, 8), axis=1, count=bits, bitorder="little")
    return np.packbits(each, bitorder="little")


def _unpack(row: Packed, bits: int) -> Words:
    """Words of a row: its bits cut every `bits`, each piece filled up to 64."""
    each = np.unpackbits(row, bitorder="little").reshape(-1, bits)
    whole = np.zeros((each.shape[0], 8), np.uint8)
    whole[:, : (bits + 7) // 8] = np.packbits(each, axis=1, bitorder="little")
    return whole.view(np.uint64).reshape(-1)


def _first(row: Words, q: int, first: int) -> int:
    """Index of the first word of `row` that is `q` or more, counted from `first`, or -1."""
    over = row > np.uint64(q - 1)
    return first + int(over.argmax()) if over.any() else -1
