"""Builds the Cython kernels; everything else about the package is in pyproject.toml."""

import numpy as np
from Cython.Build import cythonize
from setuptools import Extension, setup

KERNELS = "secagg_ext/_cython"

extensions = [
    Extension(
        f"secagg_ext._cython.{name}",
        [f"{KERNELS}/{name}.pyx"],
        depends=[f"{KERNELS}/{header}" for header in headers],
        include_dirs=[np.get_include(), KERNELS],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
        # A product and a sum fused into one rounding would differ from NumPy's, and from one machine to the next.
        extra_compile_args=["-O3", "-ffp-contract=off"],
    )
    for name, *headers in (
        ("tensors", "floats.h", "weigh.h", "clones.h"),
        ("words", "bits.h"),
        ("lanes", "lanes.h", "floats.h", "clones.h"),
        ("macs", "macs.h", "wide.h"),
        ("seeds", "seeds.h", "clones.h", "wide.h"),
        ("word_macs", "word_macs.h", "wide.h"),
    )
]

setup(ext_modules=cythonize(extensions, language_level=3))
