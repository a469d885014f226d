"""Checks of the arguments of the `seeds` kernels, as in `secagg_ext.checks`."""

from __future__ import annotations

import sys

from secagg_ext.blocks import block_nbytes
from secagg_ext.checks import _WORDS, Array, _array, _disjoint

# What the compiled kernels' arithmetic is exact for. A modulus of SEAL has at most 61 bits.
LARGEST_MODULUS = 2**61


def add_samples(stream: Array, moduli: tuple[int, ...], n: int, slack: tuple[int, ...], acc: Array) -> None:
    """Refuse wrong arguments of `add_samples`."""
    _array("stream", stream, _WORDS)
    _array("acc", acc, _WORDS, writable=True)
    _shape(moduli, n)
    _slack(slack, moduli, n)
    words = len(moduli) * n
    if acc.size % words:
        raise ValueError(f"acc has {acc.size} words: not a multiple of a block's {words}")
    expected = acc.size // words * sum(n + extra for extra in slack)
    if stream.size != expected:
        raise ValueError(f"stream has {stream.size} words: the {acc.size // words} blocks of acc take {expected}")
    _disjoint("stream", stream, "acc", acc)


def replace_mask(c0: Array, c1: Array, mask: Array, secret: Array, moduli: tuple[int, ...], n: int) -> None:
    """Refuse wrong arguments of `replace_mask`."""
    _shape(moduli, n)
    words = len(moduli) * n
    _array("c0", c0, _WORDS, writable=True)
    if c0.size % words:
        raise ValueError(f"c0 has {c0.size} words: not a multiple of a block's {words}")
    for name, array, expected in (("c1", c1, c0.size), ("mask", mask, c0.size), ("secret", secret, words)):
        _array(name, array, _WORDS)
        if array.size != expected:
            raise ValueError(f"{name} has {array.size} words, expected {expected}")
        _disjoint("c0", c0, name, array)


def _shape(moduli: tuple[int, ...], n: int) -> None:
    block_nbytes(moduli, n)
    for q in moduli:
        if q > LARGEST_MODULUS:
            raise ValueError(f"modulus {q} is outside 2 … 2**61")


def _slack(slack: tuple[int, ...], moduli: tuple[int, ...], n: int) -> None:
    if not isinstance(slack, tuple):
        raise TypeError(f"slack must be a tuple of ints, not {type(slack).__name__}")
    if len(slack) != len(moduli):
        raise ValueError(f"{len(slack)} slacks for {len(moduli)} moduli: give one each")
    for extra in slack:
        if type(extra) is not int:
            raise TypeError(f"a slack must be an int, not {type(extra).__name__}")
        if not 0 <= extra <= sys.maxsize - n or extra % 8:
            raise ValueError(f"slack {extra} is not 0 or a positive multiple of 8")
