"""Kernels of secagg: tensors to float vectors or lanes of integers, and back; words packed, added, sampled and tagged.

Each kernel exists twice with one signature and one result, to the bit (only the sum of `weigh` is taken in another
order): compiled (`secagg_ext._cython`) and in plain NumPy (`secagg_ext._numpy`), where each is also documented.
`IMPLEMENTATION` says which one runs: ``"cython"`` if it is built, else ``"numpy"``. The environment variable
``SECAGG_EXT``, with one of these two words, chooses; it is read once, at import.
"""

from __future__ import annotations

import os
import sys

__all__ = [
    "IMPLEMENTATION",
    "add_samples",
    "add_words",
    "block_nbytes",
    "check_words",
    "dequantise",
    "first_out_of_range",
    "flatten",
    "pack_words",
    "poly_mac",
    "quantise",
    "replace_mask",
    "scatter",
    "unpack_words",
    "weigh",
    "word_macs",
]


def _choose() -> str:
    """The implementation to use: what SECAGG_EXT asks for, else the best that is there."""
    wanted = os.environ.get("SECAGG_EXT")
    if wanted not in (None, "cython", "numpy"):
        raise ImportError(f"SECAGG_EXT={wanted!r}: choose 'cython' or 'numpy', or leave it unset")
    if wanted == "numpy":
        return "numpy"
    try:
        import secagg_ext._cython  # noqa: F401
    except ModuleNotFoundError as error:
        # Only an extension that was never built is replaced in silence; a broken one must be seen.
        if not (error.name or "").startswith("secagg_ext._cython."):
            raise
        if wanted == "cython":
            raise ImportError(
                "SECAGG_EXT=cython, but the extension is not built: "
                "run `python setup.py build_ext --inplace` in the source tree, or reinstall secagg"
            ) from error
        return "numpy"
    return "cython"


if sys.byteorder != "little":
    raise ImportError("secagg_ext packs words in little-endian order and does not run on big-endian hosts")

IMPLEMENTATION = _choose()

if IMPLEMENTATION == "cython":
    from secagg_ext._cython import (
        add_samples,
        add_words,
        block_nbytes,
        check_words,
        dequantise,
        first_out_of_range,
        flatten,
        pack_words,
        poly_mac,
        quantise,
        replace_mask,
        scatter,
        unpack_words,
        weigh,
        word_macs,
    )
else:
    from secagg_ext._numpy import (
        add_samples,
        add_words,
        block_nbytes,
        check_words,
        dequantise,
        first_out_of_range,
        flatten,
        pack_words,
        poly_mac,
        quantise,
        replace_mask,
        scatter,
        unpack_words,
        weigh,
        word_macs,
    )
