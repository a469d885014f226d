"""Words of ciphertexts, bit-packed to the width of their modulus. See `secagg_ext._numpy.words`, the reference."""

cimport cython
from libc.stdint cimport uint8_t, uint64_t

import numpy as np

from secagg_ext import checks
from secagg_ext.blocks import widths

cdef extern from "bits.h" nogil:
    Py_ssize_t check_row(
        const uint8_t* row, Py_ssize_t groups, Py_ssize_t after, uint64_t limit, unsigned bits)
    Py_ssize_t unpack_row(
        const uint8_t* row, Py_ssize_t groups, Py_ssize_t after, uint64_t limit, uint64_t* words, unsigned bits)
    Py_ssize_t pack_row(
        const uint64_t* words, Py_ssize_t groups, uint64_t limit, uint8_t* row, unsigned bits)
    Py_ssize_t add_row(
        uint8_t* acc, const uint8_t* row, Py_ssize_t groups, Py_ssize_t after, uint64_t limit, unsigned bits)


def pack_words(words, moduli, n, out):
    """See `secagg_ext._numpy.words.pack_words`."""
    checks.pack_words(words, moduli, n, out)
    cdef const uint64_t[::1] source = words
    cdef uint8_t[::1] packed = out
    cdef const uint64_t[::1] limits = _limits(moduli)
    cdef const uint8_t[::1] bits = _bits(moduli)
    cdef Py_ssize_t groups = n // 8, found
    with nogil:
        found = _pack(source, limits, bits, groups, packed)
    return found


def unpack_words(packed, moduli, n, out):
    """See `secagg_ext._numpy.words.unpack_words`."""
    checks.unpack_words(packed, moduli, n, out)
    cdef const uint8_t[::1] source = packed
    cdef uint64_t[::1] words = out
    cdef const uint64_t[::1] limits = _limits(moduli)
    cdef const uint8_t[::1] bits = _bits(moduli)
    cdef Py_ssize_t groups = n // 8, found
    with nogil:
        found = _unpack(source, limits, bits, groups, words)
    return found


def check_words(packed, moduli, n):
    """See `secagg_ext._numpy.words.check_words`."""
    checks.check_words(packed, moduli, n)
    cdef const uint8_t[::1] source = packed
    cdef const uint64_t[::1] limits = _limits(moduli)
    cdef const uint8_t[::1] bits = _bits(moduli)
    cdef Py_ssize_t groups = n // 8, found
    with nogil:
        found = _check(source, limits, bits, groups)
    return found


def add_words(acc, packed, moduli, n):
    """See `secagg_ext._numpy.words.add_words`."""
    checks.add_words(acc, packed, moduli, n)
    cdef uint8_t[::1] total = acc
    cdef const uint8_t[::1] source = packed
    cdef const uint64_t[::1] limits = _limits(moduli)
    cdef const uint8_t[::1] bits = _bits(moduli)
    cdef Py_ssize_t groups = n // 8, found
    with nogil:
        found = _add(total, source, limits, bits, groups)
    return found


def _limits(moduli):
    """The largest word of each row: unlike the modulus itself, it always fits 64 bits."""
    return np.array([q - 1 for q in moduli], np.uint64)


def _bits(moduli):
    return np.array(widths(moduli), np.uint8)


# The kernels: one step a row. `limits` and `bits` repeat with each block; a row of `groups` groups of eight words
# has groups * 8 words and groups * bits bytes.

@cython.boundscheck(False)
@cython.wraparound(False)
cdef Py_ssize_t _pack(
    const uint64_t[::1] words, const uint64_t[::1] limits, const uint8_t[::1] bits, Py_ssize_t groups,
    uint8_t[::1] out,
) noexcept nogil:
    cdef Py_ssize_t rows = limits.shape[0], row = 0, first = 0, at = 0, within, found = -1
    while at < out.shape[0]:
        within = pack_row(&words[first], groups, limits[row], &out[at], bits[row])
        if within >= 0 and found < 0:
            found = first + within
        first += groups * 8
        at += groups * bits[row]
        row = row + 1 if row + 1 < rows else 0
    return found


@cython.boundscheck(False)
@cython.wraparound(False)
cdef Py_ssize_t _unpack(
    const uint8_t[::1] packed, const uint64_t[::1] limits, const uint8_t[::1] bits, Py_ssize_t groups,
    uint64_t[::1] out,
) noexcept nogil:
    cdef Py_ssize_t rows = limits.shape[0], row = 0, first = 0, at = 0, end, within, found = -1
    while at < packed.shape[0]:
        end = at + groups * bits[row]
        within = unpack_row(&packed[at], groups, packed.shape[0] - end, limits[row], &out[first], bits[row])
        if within >= 0 and found < 0:
            found = first + within
        first += groups * 8
        at = end
        row = row + 1 if row + 1 < rows else 0
    return found


@cython.boundscheck(False)
@cython.wraparound(False)
cdef Py_ssize_t _check(
    const uint8_t[::1] packed, const uint64_t[::1] limits, const uint8_t[::1] bits, Py_ssize_t groups,
) noexcept nogil:
    cdef Py_ssize_t rows = limits.shape[0], row = 0, first = 0, at = 0, end, within
    while at < packed.shape[0]:
        end = at + groups * bits[row]
        within = check_row(&packed[at], groups, packed.shape[0] - end, limits[row], bits[row])
        if within >= 0:
            return first + within
        first += groups * 8
        at = end
        row = row + 1 if row + 1 < rows else 0
    return -1


@cython.boundscheck(False)
@cython.wraparound(False)
cdef Py_ssize_t _add(
    uint8_t[::1] acc, const uint8_t[::1] packed, const uint64_t[::1] limits, const uint8_t[::1] bits,
    Py_ssize_t groups,
) noexcept nogil:
    cdef Py_ssize_t rows = limits.shape[0], row = 0, first = 0, at = 0, end, within, found = -1
    while at < acc.shape[0]:
        end = at + groups * bits[row]
        within = add_row(&acc[at], &packed[at], groups, acc.shape[0] - end, limits[row], bits[row])
        if within >= 0 and found < 0:
            found = first + within
        first += groups * 8
        at = end
        row = row + 1 if row + 1 < rows else 0
    return found
