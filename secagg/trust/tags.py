"""A linear authenticator of plaintext words: tags of updates add up to the tag of their sum.

After Wegman and Carter, "New hash functions and their use in authentication and set equality" (1981), with polynomial
evaluation for the hash, as Bernstein, "The Poly1305-AES message-authentication code" (2005), section 3. Of the packed
plaintext words M of an update, encrypted section first, j counted from the last word, which has 1:

    tag = Σ αʲ·Mⱼ + r  modulo p = 2**127 − 1

α is one for all updates of a round, so that tags add up; r, one for each update, is a one-time pad, so that tags tell
nothing of α or M. Sums of an exact scheme do not wrap, so that sums of words are words of the sum as integers. Who
changes the sum by Δ ≠ 0 and the tag by δ must guess a root of Σ αʲ·Δⱼ − δ, one of at most as many as there are words.
docs/threat-model.md has the bound.
"""

from __future__ import annotations

import hmac

import numpy as np
from numpy.typing import NDArray

import secagg_ext

from ..wire.header import Contribution, Header
from ..wire.tail import TAG_MODULUS, TAG_NBYTES
from .key import ClientKey


class Authenticator:
    """Computes the tag of one update or of one aggregate, from its plaintext words in order.

    Parameters
    ----------
    key : ClientKey
        α and r derive from it, and from its epoch.
    header : Header
        Round and layout give α; site and nonce of a contribution, besides, its r.
    """

    def __init__(self, key: ClientKey, header: Header) -> None:
        self._key = key
        self._place = (header.round.to_bytes(8, "little"), bytes.fromhex(header.layout.fingerprint))
        self._contributions = header.contributions
        self._alpha = self._number(b"secagg mac point v1")
        self._state = np.zeros(2, dtype=np.uint64)
        self._signs = np.zeros(2, dtype=np.uint64)

    def add(self, words: NDArray[np.uint64], *, signed: bool = False) -> None:
        """Take the next words: unsigned integers, or `signed` ones in two's complement."""
        secagg_ext.poly_mac(words, self._alpha, self._state)
        if signed:  # a word from 2**63 on means 2**64 less; the words before all signed ones have no sign
            secagg_ext.poly_mac(words >> np.uint64(63), self._alpha, self._signs)

    def tag(self) -> int:
        """Return the tag of all words taken, under the pads of all contributions."""
        pads = sum(map(self._pad, self._contributions))
        return (_value(self._state) - (_value(self._signs) << 64) + pads) % TAG_MODULUS

    def fits(self, tag: int) -> bool:
        """Return whether `tag` is that of all words taken."""
        return hmac.compare_digest(*(number.to_bytes(TAG_NBYTES, "little") for number in (self.tag(), tag)))

    def _pad(self, contribution: Contribution) -> int:
        return self._number(b"secagg mac pad v1", contribution.site.encode(), contribution.nonce)

    def _number(self, purpose: bytes, *fields: bytes) -> int:
        """Return a number below p; 256 bits modulo p are uniform but for 2**-129."""
        return int.from_bytes(self._key.subkey(purpose, *self._place, *fields), "little") % TAG_MODULUS


def _value(state: NDArray[np.uint64]) -> int:
    low, high = state.tolist()
    return int(low) | int(high) << 64
