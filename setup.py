"""Builds the Cython kernels; everything else about the package is in pyproject.toml."""

import numpy as np
from Cython.Build import cythonize
from setuptools import Extension, setup

KERNELS = "secagg_ext/_cython"

extensions = [
    Extension(
        f"secagg_ext._cython.{name}",
        [f"{KERNELS}/{name}.pyx"],
        depends=[f"{KERNELS}/{header}"],
        include_dirs=[np.get_include(), KERNELS],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
        extra_compile_args=["-O3"],
    )
    for name, header in (("tensors", "floats.h"), ("words", "bits.h"))
]

setup(ext_modules=cythonize(extensions, language_level=3))
