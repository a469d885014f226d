"""What shows a site, before it decrypts, that a sum is the sum of the updates listed: linear tags of two kinds.

After Wegman and Carter, "New hash functions and their use in authentication and set equality" (1981): a linear hash
under a secret key that is one for all updates of a sum, so that tags add up, and one-time pads, one for each update
and its body, so that tags tell nothing of hash key or words. docs/threat-model.md has the bounds.

*Integers*: the plaintext words of FLASHE and the words of clear tensors, M, encrypted section first, j counted from the
last, which has 1. Polynomial evaluation, as in Bernstein, "The Poly1305-AES message-authentication code" (2005),
section 3:

    tag = Σ αʲ·Mⱼ + r  modulo p = 2**127 − 1

Sums of these words do not wrap, so that sums of words are words of the sum as integers.

*Ciphertext words* of a lattice scheme, which are sums modulo the data primes: `secagg.scheme.word_tags`.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

import secagg_ext

from ..scheme.params import LatticeParams
from ..scheme.word_tags import WordTags, element_count
from ..wire.header import Contribution, Header
from ..wire.tail import TAG_MODULUS, Tail, pack_tags
from .key import ClientKey, ServerKey


class Authenticator:
    """Computes the tags of one update or of one aggregate, from its words in order.

    Parameters
    ----------
    key : ClientKey
        Hash keys and pads derive from it, and from its epoch.
    header : Header
        What all updates of a sum have in common in their heads gives the hash keys: round, layout, base, manifest,
        scales.
    """

    def __init__(self, key: ClientKey, header: Header) -> None:
        self._key = key
        self._common = header.common
        self._contributions = header.contributions
        self._moduli = tag_moduli(key.server)
        self._alpha = int.from_bytes(self._subkey(b"secagg mac point v1"), "little") % TAG_MODULUS
        self._state = np.zeros(2, dtype=np.uint64)
        self._signs = np.zeros(2, dtype=np.uint64)
        self._words: WordTags | None = None
        self._rows: tuple[bytes, ...] = ()
        params = key.params
        if isinstance(params, LatticeParams):
            primes = params.data_primes(key.server.primes)
            self._rows = tuple(
                row.to_bytes(4, "little") + element.to_bytes(4, "little")
                for row, prime in enumerate(primes)
                for element in range(element_count(prime.bit_length()))
            )
            keys = [self._subkey(b"secagg word tag v1", place) for place in self._rows]
            self._words = WordTags(primes, params.poly_modulus_degree, keys)

    def add_integers(self, words: NDArray[np.uint64], *, signed: bool) -> None:
        """Take the next words of FLASHE's plaintext, unsigned, or of clear tensors, `signed` in two's complement."""
        secagg_ext.poly_mac(words, self._alpha, self._state)
        if signed:  # a word from 2**63 on means 2**64 less; the words before all signed ones have no sign
            secagg_ext.poly_mac(words >> np.uint64(63), self._alpha, self._signs)

    def add_ciphertext(self, words: NDArray[np.uint64]) -> None:
        """Take the next words of whole blocks of a lattice scheme, each below its prime."""
        assert self._words is not None
        self._words.add(words)

    def tags(self, bodies: Sequence[bytes]) -> tuple[int, ...]:
        """Return the tags of all words taken, under the pads of all contributions, whose bodies have these digests."""
        integers = _value(self._state) - (_value(self._signs) << 64)
        sums = [integers, *(self._words.elements() if self._words else ())]
        for contribution, body in zip(self._contributions, bodies, strict=True):
            for index, pad in enumerate(self._pads(contribution, body)):
                sums[index] += pad
        return tuple(total % modulus for total, modulus in zip(sums, self._moduli, strict=True))

    def fits(self, tail: Tail) -> bool:
        """Return whether the tags of a tail are those of all words taken, wherever they differ in the same time."""
        own = self.tags([proof.body for proof in tail.proofs])
        return hmac.compare_digest(pack_tags(own), pack_tags(tail.tags))

    def _pads(self, contribution: Contribution, body: bytes) -> list[int]:
        """Return the pads of one update.

        They depend on its body, so that they are used once although a nonce should be used twice: by a machine that is
        restored from a snapshot, say, and whose HE library then draws other errors for the same values.
        """
        update = (contribution.site.encode(), contribution.nonce, body)
        pads = [self._subkey(b"secagg mac pad v1", *update)]
        pads += [self._subkey(b"secagg word tag pad v1", *update, place) for place in self._rows]
        # 256 bits modulo a number below 2**127 are uniform but for 2**-129.
        return [int.from_bytes(pad, "little") for pad in pads]

    def _subkey(self, purpose: bytes, *fields: bytes) -> bytes:
        return self._key.subkey(purpose, self._common, *fields)


def tag_moduli(key: ServerKey) -> tuple[int, ...]:
    """Return modulo what each tag of an update or aggregate is a number, in the order of the tail."""
    if not isinstance(key.params, LatticeParams):
        return (TAG_MODULUS,)
    primes = key.params.data_primes(key.primes)
    return (TAG_MODULUS, *(prime for prime in primes for _ in range(element_count(prime.bit_length()))))


def _value(state: NDArray[np.uint64]) -> int:
    low, high = state.tolist()
    return int(low) | int(high) << 64
