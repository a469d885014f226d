"""Masks of ciphertexts made from a seed's stream. See `secagg_ext._numpy.seeds`, the reference."""

cimport cython
from libc.stdint cimport uint8_t, uint64_t

import numpy as np

from secagg_ext import seed_checks
from secagg_ext.blocks import widths

cdef extern from "seeds.h" nogil:
    Py_ssize_t add_region(
        uint64_t* row, Py_ssize_t n, const uint64_t* candidates, Py_ssize_t count, uint64_t limit, uint64_t mask)
    void replace_row(
        uint64_t* c0, const uint64_t* c1, const uint64_t* mask, const uint64_t* secret, Py_ssize_t n, uint64_t q,
        uint64_t reciprocal, unsigned shift)


def add_samples(stream, moduli, n, slack, acc):
    """See `secagg_ext._numpy.seeds.add_samples`."""
    seed_checks.add_samples(stream, moduli, n, slack, acc)
    cdef const uint64_t[::1] source = stream
    cdef uint64_t[::1] total = acc
    # The largest word of each row: unlike the modulus itself, it always fits 64 bits.
    cdef const uint64_t[::1] limits = np.array([q - 1 for q in moduli], np.uint64)
    cdef const uint64_t[::1] masks = np.array([2**b - 1 for b in widths(moduli)], np.uint64)
    cdef const Py_ssize_t[::1] counts = np.array([n + extra for extra in slack], np.intp)
    cdef Py_ssize_t words = n, found
    with nogil:
        found = _add(source, limits, masks, words, counts, total)
    return found


def replace_mask(c0, c1, mask, secret, moduli, n):
    """See `secagg_ext._numpy.seeds.replace_mask`."""
    seed_checks.replace_mask(c0, c1, mask, secret, moduli, n)
    cdef uint64_t[::1] total = c0
    cdef const uint64_t[::1] old = c1
    cdef const uint64_t[::1] new = mask
    cdef const uint64_t[::1] key = secret
    cdef const uint64_t[::1] primes = np.array(moduli, np.uint64)
    shift = [max(b - 2, 0) for b in widths(moduli)]
    cdef const uint8_t[::1] shifts = np.array(shift, np.uint8)
    cdef const uint64_t[::1] reciprocals = np.array(
        [2 ** (64 + s) // q for q, s in zip(moduli, shift, strict=True)], np.uint64)
    cdef Py_ssize_t words = n
    with nogil:
        _replace(total, old, new, key, primes, reciprocals, shifts, words)


# The kernels: one step a row. What belongs to a modulus repeats with each block.

@cython.boundscheck(False)
@cython.wraparound(False)
cdef Py_ssize_t _add(
    const uint64_t[::1] stream, const uint64_t[::1] limits, const uint64_t[::1] masks, Py_ssize_t n,
    const Py_ssize_t[::1] counts, uint64_t[::1] acc,
) noexcept nogil:
    cdef Py_ssize_t rows = limits.shape[0], row = 0, region = 0, first = 0, at = 0
    while first < acc.shape[0]:
        if add_region(&acc[first], n, &stream[at], counts[row], limits[row], masks[row]) < n:
            return region
        first += n
        at += counts[row]
        region += 1
        row = row + 1 if row + 1 < rows else 0
    return -1


@cython.boundscheck(False)
@cython.wraparound(False)
cdef void _replace(
    uint64_t[::1] c0, const uint64_t[::1] c1, const uint64_t[::1] mask, const uint64_t[::1] secret,
    const uint64_t[::1] moduli, const uint64_t[::1] reciprocals, const uint8_t[::1] shifts, Py_ssize_t n,
) noexcept nogil:
    cdef Py_ssize_t rows = moduli.shape[0], row = 0, first = 0
    while first < c0.shape[0]:
        replace_row(
            &c0[first], &c1[first], &mask[first], &secret[row * n], n, moduli[row], reciprocals[row], shifts[row])
        first += n
        row = row + 1 if row + 1 < rows else 0
