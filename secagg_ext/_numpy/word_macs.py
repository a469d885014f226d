"""A message authentication code over ciphertext words: bilinear forms modulo each row's modulus, so that tags add up.

Rows are those of `secagg_ext._numpy.words`: `n` words for each of the `moduli`, `n` a multiple of 8.

The function raises `TypeError` for a wrong type or dtype and `ValueError` for arrays that are not 1-D, contiguous,
writable where they are written to, of matching lengths and, where one is written to, apart in memory, and then writes
nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from secagg_ext import word_mac_checks
from secagg_ext._numpy.macs import _limbs
from secagg_ext._numpy.words import Words

# Words to a product of matrices. Its entries are sums of as many products of two 16-bit limbs, below 2**45: exact in
# float64, in whatever order they are added.
BATCH = 8192


def word_macs(
    words: Words, moduli: tuple[int, ...], n: int, counts: tuple[int, ...], beta: Words, alpha: Words, state: Words
) -> None:
    """Add the words of pieces of ciphertexts to the elements of their tag, in place.

    To element e, one of the row of words of each piece P, go ``alpha[P, e] * sum(beta[e, i] * words[P, row, i])``,
    modulo the row's modulus. So the tag is linear in the words.

    Parameters
    ----------
    words
        uint64, k pieces of ``len(moduli) * n`` words.
    moduli, n
        The modulus of each row of a piece, 2 … 2**60, and the words of a row.
    counts
        How many elements of the tag each modulus has, at least 1. With E their sum, elements are in order of moduli.
    beta
        uint64, ``E * n`` secret words: a row for each element, the same for all pieces.
    alpha
        uint64, ``k * E`` secret words: for each piece, one for each element.
    state
        uint64, the E elements, updated to numbers below their moduli. All words of the four arrays must be below
        their moduli; up to 2**60 they are reduced, from there on the result means nothing.

    Notes
    -----
    The compiled kernel takes a time that depends on the sizes and moduli only. This one, on Python's integers, does
    not promise that.
    """
    word_mac_checks.word_macs(words, moduli, n, counts, beta, alpha, state)
    limbs = _limbs(beta, 4).reshape(-1, n, 4).swapaxes(1, 2)
    tables = [table.reshape(-1, n) for table in np.split(limbs, np.cumsum(counts)[:-1])]
    divisors = np.repeat(np.array(moduli, object), counts)
    for piece, factors in zip(words.reshape(-1, len(moduli), n), alpha.reshape(-1, len(state)), strict=True):
        dots = np.array([dot for row, table in zip(piece, tables, strict=True) for dot in _dots(row, table)], object)
        state[:] = (state.astype(object) + factors.astype(object) * dots) % divisors


def _dots(row: Words, table: NDArray[np.float64]) -> Iterator[int]:
    """Yield the sum of products of the row's words and each element's, whose limbs are four rows of `table`."""
    columns = np.zeros((len(table) // 4, 7), object)
    for first in range(0, row.size, BATCH):
        products = table[:, first : first + BATCH] @ _limbs(row[first : first + BATCH], 4)
        for limb, sums in enumerate(products.reshape(-1, 4, 4).swapaxes(0, 1)):
            columns[:, limb : limb + 4] += sums.astype(np.int64)
    yield from (sum(int(column) << 16 * limb for limb, column in enumerate(own)) for own in columns)
