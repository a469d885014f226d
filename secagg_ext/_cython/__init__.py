"""The kernels, compiled. Importing this fails if the extension is not built."""

from __future__ import annotations

from secagg_ext._cython.lanes import dequantise, quantise
from secagg_ext._cython.macs import poly_mac
from secagg_ext._cython.seeds import add_samples, replace_mask
from secagg_ext._cython.tensors import first_out_of_range, flatten, scatter, weigh
from secagg_ext._cython.word_macs import word_macs
from secagg_ext._cython.words import add_words, check_words, pack_words, unpack_words
from secagg_ext.blocks import block_nbytes

__all__ = [
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
