"""A message authentication code: a polynomial over words. See `secagg_ext._numpy.macs`, the reference."""

cimport cython
from libc.stdint cimport uint64_t

from secagg_ext import mac_checks

cdef extern from "macs.h" nogil:
    bint has_lanes()
    void evaluate(
        const uint64_t* words, Py_ssize_t n, uint64_t alpha_low, uint64_t alpha_high, uint64_t* state, bint lanes)


def poly_mac(words, alpha, state):
    """See `secagg_ext._numpy.macs.poly_mac`."""
    mac_checks.poly_mac(words, alpha, state)
    _poly_mac(words, alpha, state, has_lanes())


def _portable_poly_mac(words, alpha, state):
    """`poly_mac` as processors without lanes run it, for tests."""
    mac_checks.poly_mac(words, alpha, state)
    _poly_mac(words, alpha, state, False)


cdef _poly_mac(words, alpha, state, bint lanes):
    cdef const uint64_t[::1] source = words
    cdef uint64_t[::1] total = state
    cdef uint64_t low = alpha & 0xFFFF_FFFF_FFFF_FFFF, high = alpha >> 64
    with nogil:
        _evaluate(source, low, high, total, lanes)


@cython.boundscheck(False)
@cython.wraparound(False)
cdef void _evaluate(
    const uint64_t[::1] words, uint64_t alpha_low, uint64_t alpha_high, uint64_t[::1] state, bint lanes,
) noexcept nogil:
    if words.shape[0] > 0:
        evaluate(&words[0], words.shape[0], alpha_low, alpha_high, &state[0], lanes)
