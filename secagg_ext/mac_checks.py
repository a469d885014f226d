"""Checks of the arguments of the `macs` kernel, as in `secagg_ext.checks`.

The point and the state are secrets: no message shows them.
"""

from __future__ import annotations

from secagg_ext.checks import _WORDS, Array, _array, _disjoint

#: The prime p of the polynomial: a Mersenne prime, so that a reduction takes shifts and sums only.
PRIME = 2**127 - 1


def poly_mac(words: Array, alpha: int, state: Array) -> None:
    """Refuse wrong arguments of `poly_mac`."""
    _array("words", words, _WORDS)
    if type(alpha) is not int:
        raise TypeError(f"alpha must be an int, not {type(alpha).__name__}")
    if not 0 <= alpha < PRIME:
        raise ValueError("alpha must be at least 0 and below 2**127 - 1")
    _array("state", state, _WORDS, writable=True)
    if state.size != 2:
        raise ValueError(f"state has {state.size} words, expected 2: the low and the high word of a number")
    if int(state[0]) | int(state[1]) << 64 >= PRIME:
        raise ValueError("state must be below 2**127 - 1: begin with zeros, or with a number reduced modulo it")
    _disjoint("words", words, "state", state)
