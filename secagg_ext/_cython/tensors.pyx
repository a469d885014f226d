"""Tensors of any float dtype as one float vector, and back. See `secagg_ext._numpy.tensors`, the reference."""

cimport cython
cimport numpy as cnp
from libc.stdint cimport uint8_t
from libc.string cimport memcpy

from secagg_ext._cython.floats cimport (
    OF_FLOAT32, dtype_of, first_beyond, first_beyond_float, narrow_doubles, narrow_singles, size_of_dtype,
    tensor_dtype, widen,
)

import numpy as np

from secagg_ext import checks

cnp.import_array()

cdef extern from "weigh.h" nogil:
    void weigh_values(
        const void* values, tensor_dtype, const float* residual, Py_ssize_t count, double factor, double* largest,
        double* energy)

ctypedef fused Real:
    float
    double

cdef enum:
    CHUNK = 1024  # elements held as float64 at a time: 8 KiB, which stay in the first cache

cdef double UNBOUNDED = -1.0  # in place of a bound: check nothing


def flatten(sources, out, start=0, factor=1.0, bounds=None):
    """See `secagg_ext._numpy.tensors.flatten`."""
    checks.flatten(sources, out, start, factor, bounds)
    if cnp.PyArray_TYPE(out) == cnp.NPY_FLOAT32:
        return _flatten[float](sources, out, start, factor, bounds)
    return _flatten[double](sources, out.view(np.float64), start, factor, bounds)


def scatter(vector, targets, start=0, factor=1.0):
    """See `secagg_ext._numpy.tensors.scatter`."""
    checks.scatter(vector, targets, start, factor)
    if cnp.PyArray_TYPE(vector) == cnp.NPY_FLOAT32:
        _scatter[float](vector, targets, start, factor)
    else:
        _scatter[double](vector.view(np.float64), targets, start, factor)


def first_out_of_range(source, double bound):
    """See `secagg_ext._numpy.tensors.first_out_of_range`."""
    checks.first_out_of_range(source, bound)
    cdef const uint8_t[::1] octets = source.view(np.uint8)
    cdef tensor_dtype dtype = dtype_of(source)
    cdef Py_ssize_t found
    with nogil:
        found = _beyond(octets, dtype, bound)
    return found


def weigh(source, factor, residual=None):
    """See `secagg_ext._numpy.tensors.weigh`."""
    checks.weigh(source, factor, residual)
    cdef const void* values = cnp.PyArray_DATA(source)
    cdef const float* rest = NULL
    cdef Py_ssize_t size = cnp.PyArray_SIZE(source)
    cdef tensor_dtype dtype = dtype_of(source)
    cdef double scale = factor, largest, energy
    if residual is not None:
        rest = <const float*>cnp.PyArray_DATA(residual)
    with nogil:
        weigh_values(values, dtype, rest, size, scale, &largest, &energy)
    return largest, energy


cdef _flatten(sources, Real[::1] out, Py_ssize_t start, double factor, bounds):
    cdef Py_ssize_t begin = 0, filled = 0, found = -1, low, high, size, itemsize, within
    cdef const uint8_t[::1] octets
    cdef tensor_dtype dtype
    cdef double bound = UNBOUNDED
    for index, source in enumerate(sources):
        size = cnp.PyArray_SIZE(source)
        low = max(start - begin, 0)
        high = min(start - begin + out.shape[0], size)
        if low < high:
            if bounds is not None:
                bound = bounds[index]
            octets, itemsize, dtype = source.view(np.uint8), cnp.PyArray_ITEMSIZE(source), dtype_of(source)
            with nogil:
                within = _gather(
                    octets[low * itemsize:high * itemsize], dtype, out[filled:filled + high - low], factor, bound)
            if within >= 0 and found < 0:
                found = begin + low + within
            filled += high - low
        begin += size
    out[filled:] = 0
    return found


cdef _scatter(const Real[::1] vector, targets, Py_ssize_t start, double factor):
    cdef Py_ssize_t begin = 0, taken = 0, low, high, size, itemsize
    cdef uint8_t[::1] octets
    cdef tensor_dtype dtype
    for target in targets:
        size = cnp.PyArray_SIZE(target)
        low = max(start - begin, 0)
        high = min(start - begin + vector.shape[0], size)
        if low < high:
            octets, itemsize, dtype = target.view(np.uint8), cnp.PyArray_ITEMSIZE(target), dtype_of(target)
            with nogil:
                _spread(vector[taken:taken + high - low], octets[low * itemsize:high * itemsize], dtype, factor)
            taken += high - low
        begin += size


# The kernels. Tensors come as their bytes; vectors and stretches of tensors that meet have equally many elements.

@cython.boundscheck(False)
@cython.wraparound(False)
cdef Py_ssize_t _gather(
    const uint8_t[::1] source, tensor_dtype dtype, Real[::1] out, double factor, double bound
) noexcept nogil:
    """out = source * factor; index of the first element beyond the bound, or -1."""
    cdef double wide[CHUNK]
    cdef Py_ssize_t size = out.shape[0], itemsize = size_of_dtype(dtype), at = 0, count, i, found = -1
    if itemsize == sizeof(Real) and factor == 1 and bound < 0:  # the same dtype
        memcpy(&out[0], &source[0], size * sizeof(Real))
        return -1
    while at < size:
        count = min(size - at, CHUNK)
        widen(&source[at * itemsize], dtype, count, wide)
        if bound >= 0 and found < 0:
            i = first_beyond(wide, count, bound)
            if i >= 0:
                found = at + i
        for i in range(count):
            out[at + i] = <Real>(wide[i] * factor)
        at += count
    return found


@cython.boundscheck(False)
@cython.wraparound(False)
cdef void _spread(const Real[::1] vector, uint8_t[::1] target, tensor_dtype dtype, double factor) noexcept nogil:
    """target = vector * factor."""
    cdef Py_ssize_t size = vector.shape[0], itemsize = size_of_dtype(dtype)
    if itemsize == sizeof(Real) and factor == 1:  # the same dtype
        memcpy(&target[0], &vector[0], size * sizeof(Real))
        return
    if Real is double:
        narrow_doubles(&vector[0], factor, dtype, size, &target[0])
    else:
        narrow_singles(&vector[0], factor, dtype, size, &target[0])


@cython.boundscheck(False)
@cython.wraparound(False)
@cython.cdivision(True)
cdef Py_ssize_t _beyond(const uint8_t[::1] source, tensor_dtype dtype, double bound) noexcept nogil:
    """Index of the first element beyond the bound, or -1."""
    cdef double wide[CHUNK]
    cdef Py_ssize_t itemsize = size_of_dtype(dtype), size = source.shape[0] // itemsize, at = 0, count, i
    while at < size:
        count = min(size - at, CHUNK)
        if dtype == OF_FLOAT32:
            i = first_beyond_float(<const float*>&source[at * itemsize], count, bound)
        else:
            widen(&source[at * itemsize], dtype, count, wide)
            i = first_beyond(wide, count, bound)
        if i >= 0:
            return at + i
        at += count
    return -1
