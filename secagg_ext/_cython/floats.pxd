"""Floats of any dtype, for the kernels that read or write tensors."""

cimport numpy as cnp

cdef extern from "floats.h" nogil:
    enum tensor_dtype:
        OF_FLOAT16
        OF_BFLOAT16
        OF_FLOAT32
        OF_FLOAT64
    Py_ssize_t size_of_dtype(tensor_dtype)
    Py_ssize_t first_beyond(const double*, Py_ssize_t, double)
    Py_ssize_t first_beyond_float(const float*, Py_ssize_t, double)
    void widen(const void*, tensor_dtype, Py_ssize_t, double*)
    void narrow_doubles(const double*, double factor, tensor_dtype, Py_ssize_t, void*)
    void narrow_singles(const float*, double factor, tensor_dtype, Py_ssize_t, void*)


cdef inline tensor_dtype dtype_of(tensor):
    """What a tensor's elements are; the checks let nothing else pass."""
    cdef int dtype = cnp.PyArray_TYPE(tensor)
    if dtype == cnp.NPY_FLOAT32:
        return OF_FLOAT32
    if dtype == cnp.NPY_FLOAT64:
        return OF_FLOAT64
    return OF_FLOAT16 if dtype == cnp.NPY_FLOAT16 else OF_BFLOAT16
