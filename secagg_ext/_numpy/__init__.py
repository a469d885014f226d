"""The kernels in plain NumPy: the reference that the compiled ones are tested against."""

from __future__ import annotations

from secagg_ext._numpy.lanes import dequantise, quantise
from secagg_ext._numpy.macs import poly_mac
from secagg_ext._numpy.seeds import add_samples, replace_mask
from secagg_ext._numpy.tensors import first_out_of_range, flatten, scatter, weigh
from secagg_ext._numpy.word_macs import word_macs
from secagg_ext._numpy.words import add_words, check_words, pack_words, unpack_words
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
