"""Floats as integers in the lanes of words, and their sums back. See `secagg_ext._numpy.lanes`, the reference."""

cimport numpy as cnp
from libc.stdint cimport int64_t, uint8_t, uint64_t

from secagg_ext._cython.floats cimport dtype_of, tensor_dtype

import numpy as np

from secagg_ext import lane_checks

cnp.import_array()

cdef extern from "lanes.h" nogil:
    struct lane_layout:
        Py_ssize_t n, lanes
        unsigned bits
    struct lane_quantiser:
        lane_layout layout
        uint64_t start, seed
        bint seeded
        double limit
    struct lane_scale:
        double factor, step, cap
    struct lane_reader:
        lane_layout layout
        uint64_t largest, offset
    uint64_t quantise_values(
        const lane_quantiser*, const void* values, tensor_dtype, float* residuals, Py_ssize_t count, Py_ssize_t at,
        const lane_scale*, uint64_t* words)
    void quantise_padding(const lane_quantiser*, Py_ssize_t count, Py_ssize_t at, uint64_t* words)
    Py_ssize_t dequantise_values(
        const lane_reader*, const uint64_t* words, Py_ssize_t at, Py_ssize_t count, double factor, tensor_dtype,
        void* values)


def quantise(
    sources, out, n, lanes, lane_bits, limit, start, factors, steps, caps, clipped, seed=None, residuals=None
):
    """See `secagg_ext._numpy.lanes.quantise`."""
    lane_checks.quantise(
        sources, out, n, lanes, lane_bits, limit, start, factors, steps, caps, clipped, seed, residuals)
    cdef lane_quantiser to
    to.layout.n, to.layout.lanes, to.layout.bits = n, lanes, lane_bits
    to.start, to.seed, to.seeded, to.limit = start, seed or 0, seed is not None, limit
    cdef uint64_t[::1] words = out
    cdef int64_t[::1] counts = clipped
    cdef const uint8_t[::1] octets
    cdef float[::1] rests
    cdef float* rest = NULL
    cdef Py_ssize_t first = start, room = out.size * lanes, begin = 0, filled = 0, size, low, high, byte
    cdef uint64_t beyond
    cdef tensor_dtype dtype
    cdef lane_scale scale
    for index, source in enumerate(sources):
        size = cnp.PyArray_SIZE(source)
        low = max(first - begin, 0)
        high = min(first - begin + room, size)
        if low < high:
            octets, dtype, byte = source.view(np.uint8), dtype_of(source), low * cnp.PyArray_ITEMSIZE(source)
            scale.factor, scale.step, scale.cap = factors[index], steps[index], caps[index]
            if residuals is not None:
                rests = residuals[index]
                rest = &rests[low]
            with nogil:
                beyond = quantise_values(&to, &octets[byte], dtype, rest, high - low, filled, &scale, &words[0])
            counts[index] += <int64_t>beyond
            filled += high - low
        begin += size
    if filled < room:
        with nogil:
            quantise_padding(&to, room - filled, filled, &words[0])


def dequantise(words, targets, n, lanes, lane_bits, largest, offset, start, factors):
    """See `secagg_ext._numpy.lanes.dequantise`."""
    lane_checks.dequantise(words, targets, n, lanes, lane_bits, largest, offset, start, factors)
    cdef lane_reader reader
    reader.layout.n, reader.layout.lanes, reader.layout.bits = n, lanes, lane_bits
    reader.largest, reader.offset = largest, offset
    cdef const uint64_t[::1] sums = words
    cdef uint8_t[::1] octets
    cdef Py_ssize_t first = start, room = words.size * lanes, begin = 0, taken = 0, found = -1
    cdef Py_ssize_t size, low, high, byte, within
    cdef tensor_dtype dtype
    cdef double factor
    for index, target in enumerate(targets):
        size = cnp.PyArray_SIZE(target)
        low = max(first - begin, 0)
        high = min(first - begin + room, size)
        if low < high:
            octets, dtype, byte = target.view(np.uint8), dtype_of(target), low * cnp.PyArray_ITEMSIZE(target)
            factor = factors[index]
            with nogil:
                within = dequantise_values(&reader, &sums[0], taken, high - low, factor, dtype, &octets[byte])
            found = within if found < 0 else found
            taken += high - low
        begin += size
    if taken < room:
        with nogil:
            within = dequantise_values(&reader, &sums[0], taken, room - taken, 0, tensor_dtype.OF_FLOAT64, NULL)
        found = within if found < 0 else found
    return first + found if found >= 0 else -1
