"""A message authentication code over words: a polynomial, evaluated at a secret point modulo p = 2**127 - 1.

The function raises `TypeError` for a wrong type or dtype and `ValueError` for a number outside its range or arrays
that are not 1-D, contiguous, writable where they are written to and apart in memory, and then writes nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from secagg_ext import mac_checks
from secagg_ext._numpy.words import Words
from secagg_ext.mac_checks import PRIME

# Words to a product of matrices. Its entries are sums of as many products of two 16-bit limbs, below 2**42, and a
# column is up to four of them: exact in float64, in whatever order they are added.
BATCH = 1024


def poly_mac(words: Words, alpha: int, state: Words) -> None:
    """For each word in order, ``state = (state + word) * alpha`` modulo 2**127 - 1, in place.

    From a state of 0, that is the sum of each word times a power of `alpha`, where the last word meets the first
    power, the word before it the second, and so on. A stream of words may come in any number of calls.

    Parameters
    ----------
    words
        uint64, any number of them.
    alpha
        The point, 0 … 2**127 - 2.
    state
        Two uint64, the low and the high word of a number below 2**127 - 1; updated to the next such number.

    Notes
    -----
    The hash of polynomials that Poly1305 [1]_ made known, on words of 64 bits and modulo a Mersenne prime. Two
    different streams of n words each agree at no more than n of the points.

    The compiled kernel takes a time that depends on the number of words only. This one, on Python's integers, does
    not promise that.

    References
    ----------
    .. [1] D. J. Bernstein, "The Poly1305-AES message-authentication code", FSE 2005.
    """
    mac_checks.poly_mac(words, alpha, state)
    powers = [1]
    while len(powers) <= min(words.size, BATCH):
        powers.append(powers[-1] * alpha % PRIME)
    table = _limbs(np.frombuffer(b"".join(power.to_bytes(16, "little") for power in powers[:0:-1]), np.uint64), 8)
    total = int(state[0]) | int(state[1]) << 64
    for first in range(0, words.size, BATCH):
        batch = _limbs(words[first : first + BATCH], 4)
        count = len(batch)
        columns = np.zeros(11)
        for limb, sums in enumerate(batch.T @ table[len(table) - count :]):
            columns[limb : limb + 8] += sums
        dot = sum(int(column) << 16 * limb for limb, column in enumerate(columns))
        total = (total * powers[count] + dot) % PRIME
    state[:] = total & 2**64 - 1, total >> 64


def _limbs(words: Words, count: int) -> NDArray[np.float64]:
    """Limbs of 16 bits, from the lowest: a row of `count` for each number of ``count / 4`` words."""
    return words.view(np.uint16).reshape(-1, count).astype(np.float64)
