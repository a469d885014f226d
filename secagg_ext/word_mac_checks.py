"""Checks of the arguments of the `word_macs` kernel, as in `secagg_ext.checks`.

Multipliers and state are secrets: no message shows them.
"""

from __future__ import annotations

from secagg_ext.blocks import block_nbytes
from secagg_ext.checks import _WORDS, Array, _array, _disjoint

# What the compiled kernel's arithmetic is exact for.
LARGEST_MODULUS = 2**60


def word_macs(
    words: Array, moduli: tuple[int, ...], n: int, counts: tuple[int, ...], beta: Array, alpha: Array, state: Array
) -> None:
    """Refuse wrong arguments of `word_macs`."""
    block_nbytes(moduli, n)
    for q in moduli:
        if q > LARGEST_MODULUS:
            raise ValueError(f"modulus {q} is outside 2 … 2**60")
    _counts(counts, moduli)
    _array("words", words, _WORDS)
    if words.size % (len(moduli) * n):
        raise ValueError(f"words has {words.size} words: not a multiple of a piece's {len(moduli) * n}")
    pieces, elements = words.size // (len(moduli) * n), sum(counts)
    _array("state", state, _WORDS, writable=True)
    for name, array, expected in (
        ("beta", beta, elements * n),
        ("alpha", alpha, pieces * elements),
        ("state", state, elements),
    ):
        _array(name, array, _WORDS)
        if array.size != expected:
            raise ValueError(f"{name} has {array.size} words, expected {expected}")
    for name, array in (("words", words), ("beta", beta), ("alpha", alpha)):
        _disjoint("state", state, name, array)


def _counts(counts: tuple[int, ...], moduli: tuple[int, ...]) -> None:
    if not isinstance(counts, tuple):
        raise TypeError(f"counts must be a tuple of ints, not {type(counts).__name__}")
    if len(counts) != len(moduli):
        raise ValueError(f"{len(counts)} counts for {len(moduli)} moduli: give one each")
    for count in counts:
        if type(count) is not int:
            raise TypeError(f"a count must be an int, not {type(count).__name__}")
        if count < 1:
            raise ValueError(f"count {count} is not 1 or more")
