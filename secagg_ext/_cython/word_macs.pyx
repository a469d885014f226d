"""A linear message authentication code over ciphertext words. See `secagg_ext._numpy.word_macs`, the reference."""

cimport cython
from libc.stdint cimport uint64_t

import numpy as np

from secagg_ext import word_mac_checks

cdef extern from "word_macs.h" nogil:
    uint64_t add_row(
        uint64_t state, uint64_t alpha, const uint64_t* words, const uint64_t* beta, Py_ssize_t n, uint64_t q,
        uint64_t low, uint64_t high)


def word_macs(words, moduli, n, counts, beta, alpha, state):
    """See `secagg_ext._numpy.word_macs.word_macs`."""
    word_mac_checks.word_macs(words, moduli, n, counts, beta, alpha, state)
    cdef const uint64_t[::1] source = words
    cdef const uint64_t[::1] rows = beta
    cdef const uint64_t[::1] factors = alpha
    cdef uint64_t[::1] total = state
    cdef const uint64_t[::1] primes = np.array(moduli, np.uint64)
    cdef const uint64_t[::1] low = np.array([2**128 // q & 2**64 - 1 for q in moduli], np.uint64)
    cdef const uint64_t[::1] high = np.array([2**128 // q >> 64 for q in moduli], np.uint64)
    cdef const Py_ssize_t[::1] elements = np.array(counts, np.intp)
    cdef Py_ssize_t size = n
    with nogil:
        _add(source, primes, low, high, size, elements, rows, factors, total)


@cython.boundscheck(False)
@cython.wraparound(False)
cdef void _add(
    const uint64_t[::1] words, const uint64_t[::1] moduli, const uint64_t[::1] low, const uint64_t[::1] high,
    Py_ssize_t n, const Py_ssize_t[::1] counts, const uint64_t[::1] beta, const uint64_t[::1] alpha,
    uint64_t[::1] state,
) noexcept nogil:
    cdef Py_ssize_t first = 0, factor = 0, element, row, i
    while first < words.shape[0]:  # a step is a piece
        element = 0
        for row in range(moduli.shape[0]):
            for i in range(counts[row]):
                state[element] = add_row(
                    state[element], alpha[factor], &words[first], &beta[element * n], n, moduli[row], low[row],
                    high[row])
                element += 1
                factor += 1
            first += n
