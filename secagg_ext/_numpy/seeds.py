"""Masks of ciphertexts made from a seed's stream: sampled words added up, and a ciphertext moved to a sampled mask.

Blocks and rows are those of `secagg_ext._numpy.words`: one row of `n` words for each of the `moduli`, `n` a multiple
of 8; unpacked, a word is a uint64.

Both functions raise `TypeError` for a wrong type or dtype and `ValueError` for arrays that are not 1-D, contiguous,
writable where they are written to, of matching lengths and, where one is written to, apart in memory, and then write
nothing.
"""

from __future__ import annotations

import numpy as np

from secagg_ext import seed_checks
from secagg_ext._numpy.words import Words
from secagg_ext.blocks import widths


def add_samples(stream: Words, moduli: tuple[int, ...], n: int, slack: tuple[int, ...], acc: Words) -> int:
    """Sample uniform words from a stream of random words and add them to words, modulo each row's modulus, in place.

    A row modulo q takes its words from its region of the stream: ``n + slack`` candidates, of which only the low
    ``b = (q - 1).bit_length()`` bits count. Its words are the first `n` candidates below q; those not below q are
    skipped, so that the words are uniform if the stream is.

    Parameters
    ----------
    stream
        uint64, the regions of all rows one after another: of each of the k blocks, and of each of its rows.
    moduli, n
        The modulus of each row of a block, 2 … 2**61, and the words of a row.
    slack
        For each row, the candidates to spare: multiples of 8, 0 included. It decides how likely a region is to have
        too few.
    acc
        uint64, ``k * len(moduli) * n`` words, updated. They must be below their moduli; otherwise the sums mean
        nothing.

    Returns
    -------
    int
        -1, or the index of the first region, ``block * len(moduli) + row``, with fewer than `n` candidates below its
        modulus. `acc` is then updated in part and means nothing.

    Notes
    -----
    Time depends on the candidates, not on the words of `acc`: the stream is taken to be public.
    """
    seed_checks.add_samples(stream, moduli, n, slack, acc)
    bits = widths(moduli)
    begin = 0
    for region in range(acc.size // n):
        row = region % len(moduli)
        end = begin + n + slack[row]
        candidates = stream[begin:end] & np.uint64(2 ** bits[row] - 1)
        sampled = candidates[candidates < np.uint64(moduli[row])][:n]
        if sampled.size < n:
            return region
        words = acc[region * n : (region + 1) * n]
        words[:] = (words + sampled) % np.uint64(moduli[row])
        begin = end
    return -1


def replace_mask(c0: Words, c1: Words, mask: Words, secret: Words, moduli: tuple[int, ...], n: int) -> None:
    """Make `c0` of each ciphertext (c0, c1) the one that belongs to another mask: ``c0 + (c1 - mask) * secret``.

    The ciphertext (c0, mask) then decrypts, ``c0 + mask * secret``, to what (c0, c1) did.

    Parameters
    ----------
    c0
        uint64, k blocks of ``len(moduli) * n`` words in NTT form, updated.
    c1, mask
        uint64, as many: the mask of the ciphertext and the one to put in its place, both in NTT form.
    secret
        uint64, one block: the secret key in NTT form. The words of all four must be below their moduli; otherwise the
        result means nothing.
    moduli, n
        The modulus of each row, 2 … 2**61, and the words of a row.

    Notes
    -----
    The compiled kernel takes a time that does not depend on any word. This one, on Python's integers, does not
    promise that.
    """
    seed_checks.replace_mask(c0, c1, mask, secret, moduli, n)
    key = secret.reshape(len(moduli), n).astype(object)
    for row, (x, old, new) in enumerate(zip(*(array.reshape(-1, n) for array in (c0, c1, mask)), strict=True)):
        q, s = moduli[row % len(moduli)], key[row % len(moduli)]
        x[:] = ((x.astype(object) + (old.astype(object) - new.astype(object)) * s) % q).astype(np.uint64)
