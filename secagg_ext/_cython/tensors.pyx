"""Tensors of any float dtype as one float vector, and back. See `secagg_ext._numpy.tensors`, the reference."""

cimport cython
cimport numpy as cnp
from libc.stdint cimport uint16_t
from libc.string cimport memcpy

import numpy as np

from secagg_ext import checks

cnp.import_array()

cdef extern from "floats.h" nogil:
    Py_ssize_t first_beyond(const double*, Py_ssize_t, double)
    float float_from_float16(uint16_t)
    float float_from_bfloat16(uint16_t)
    uint16_t float16_from_float(float)
    uint16_t bfloat16_from_float(float)

ctypedef fused Tensor:
    uint16_t  # bit patterns: of float16 if `half`, else of bfloat16
    float
    double

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
    cdef const uint16_t[::1] patterns
    cdef const float[::1] singles
    cdef const double[::1] doubles
    cdef int dtype = cnp.PyArray_TYPE(source)
    cdef Py_ssize_t found
    if dtype == cnp.NPY_FLOAT32:
        singles = source
        with nogil:
            found = _beyond(singles, False, bound)
    elif dtype == cnp.NPY_FLOAT64:
        doubles = source
        with nogil:
            found = _beyond(doubles, False, bound)
    else:
        patterns = source.view(np.uint16)
        with nogil:
            found = _beyond(patterns, dtype == cnp.NPY_FLOAT16, bound)
    return found


cdef _flatten(sources, Real[::1] out, Py_ssize_t start, double factor, bounds):
    cdef Py_ssize_t begin = 0, filled = 0, found = -1, low, high, size, within
    cdef double bound = UNBOUNDED
    for index, source in enumerate(sources):
        size = cnp.PyArray_SIZE(source)
        low = max(start - begin, 0)
        high = min(start - begin + out.shape[0], size)
        if low < high:
            if bounds is not None:
                bound = bounds[index]
            within = _read(source, low, high, out[filled:filled + high - low], factor, bound)
            if within >= 0 and found < 0:
                found = begin + low + within
            filled += high - low
        begin += size
    out[filled:] = 0
    return found


cdef _scatter(const Real[::1] vector, targets, Py_ssize_t start, double factor):
    cdef Py_ssize_t begin = 0, taken = 0, low, high, size
    for target in targets:
        size = cnp.PyArray_SIZE(target)
        low = max(start - begin, 0)
        high = min(start - begin + vector.shape[0], size)
        if low < high:
            _write(vector[taken:taken + high - low], target, low, high, factor)
            taken += high - low
        begin += size


cdef Py_ssize_t _read(
    source, Py_ssize_t low, Py_ssize_t high, Real[::1] out, double factor, double bound
) except? -2:
    """Fill `out` from a stretch of `source`, with the kernel for its dtype."""
    cdef const uint16_t[::1] patterns
    cdef const float[::1] singles
    cdef const double[::1] doubles
    cdef int dtype = cnp.PyArray_TYPE(source)
    cdef Py_ssize_t found
    if dtype == cnp.NPY_FLOAT32:
        singles = source
        with nogil:
            found = _gather(singles[low:high], False, out, factor, bound)
    elif dtype == cnp.NPY_FLOAT64:
        doubles = source
        with nogil:
            found = _gather(doubles[low:high], False, out, factor, bound)
    else:
        patterns = source.view(np.uint16)
        with nogil:
            found = _gather(patterns[low:high], dtype == cnp.NPY_FLOAT16, out, factor, bound)
    return found


cdef int _write(const Real[::1] vector, target, Py_ssize_t low, Py_ssize_t high, double factor) except -1:
    """Fill a stretch of `target` from `vector`, with the kernel for its dtype."""
    cdef uint16_t[::1] patterns
    cdef float[::1] singles
    cdef double[::1] doubles
    cdef int dtype = cnp.PyArray_TYPE(target)
    if dtype == cnp.NPY_FLOAT32:
        singles = target
        with nogil:
            _spread(vector, singles[low:high], False, factor)
    elif dtype == cnp.NPY_FLOAT64:
        doubles = target
        with nogil:
            _spread(vector, doubles[low:high], False, factor)
    else:
        patterns = target.view(np.uint16)
        with nogil:
            _spread(vector, patterns[low:high], dtype == cnp.NPY_FLOAT16, factor)
    return 0


# The kernels. Vectors and stretches of tensors that meet in them have equal lengths.

@cython.boundscheck(False)
@cython.wraparound(False)
cdef Py_ssize_t _gather(
    const Tensor[::1] source, bint half, Real[::1] out, double factor, double bound
) noexcept nogil:
    """out = source * factor; index of the first element beyond the bound, or -1."""
    cdef double wide[CHUNK]
    cdef Py_ssize_t size = source.shape[0], at = 0, count, i, found = -1
    if (Tensor is float and Real is float) or (Tensor is double and Real is double):
        if factor == 1 and bound < 0:
            memcpy(&out[0], &source[0], size * sizeof(Real))
            return -1
    while at < size:
        count = min(size - at, CHUNK)
        _widen(&source[at], half, count, wide)
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
cdef void _spread(const Real[::1] vector, Tensor[::1] target, bint half, double factor) noexcept nogil:
    """target = vector * factor."""
    cdef Py_ssize_t size = target.shape[0], i
    if (Tensor is float and Real is float) or (Tensor is double and Real is double):
        if factor == 1:
            memcpy(&target[0], &vector[0], size * sizeof(Real))
            return
    if Tensor is uint16_t:
        if half:
            for i in range(size):
                target[i] = float16_from_float(<float>(vector[i] * factor))
        else:
            for i in range(size):
                target[i] = bfloat16_from_float(<float>(vector[i] * factor))
    else:
        for i in range(size):
            target[i] = <Tensor>(vector[i] * factor)


@cython.boundscheck(False)
@cython.wraparound(False)
cdef Py_ssize_t _beyond(const Tensor[::1] source, bint half, double bound) noexcept nogil:
    """Index of the first element beyond the bound, or -1."""
    cdef double wide[CHUNK]
    cdef Py_ssize_t size = source.shape[0], at = 0, count, i
    while at < size:
        count = min(size - at, CHUNK)
        _widen(&source[at], half, count, wide)
        i = first_beyond(wide, count, bound)
        if i >= 0:
            return at + i
        at += count
    return -1


cdef inline void _widen(const Tensor* source, bint half, Py_ssize_t count, double* wide) noexcept nogil:
    cdef Py_ssize_t i
    if Tensor is uint16_t:
        if half:
            for i in range(count):
                wide[i] = float_from_float16(source[i])
        else:
            for i in range(count):
                wide[i] = float_from_bfloat16(source[i])
    else:
        for i in range(count):
            wide[i] = source[i]
