"""Linear tags of ciphertext words: bilinear forms modulo the data primes, which add up as ciphertexts do.

For each data prime q, κ elements T = Σ_B Σ_i α_B·β_i·c_{B,i} mod q over the words c of all polynomials B that travel:
the N words that a polynomial has modulo q meet the same β, and each polynomial has a multiplier α of its own.

Who changes the sum of words by Δ ≠ 0 modulo q, and an element by δ, must guess that αᵀΔβ = δ: of all α and β, at most a
part of 2/q makes it so. Universal hashing after Carter and Wegman, "Universal classes of hash functions" (1979), and
Wegman and Carter (1981); docs/threat-model.md has the bound.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

import secagg_ext

from .keystream import Keystream

#: An attempt to change words succeeds with a probability below about 2**-TAG_BITS, whatever the prime.
TAG_BITS = 112

#: Candidates that are read at a time once the words of β are there.
_STEP = 512


def element_count(bits: int) -> int:
    """Return κ, how many elements a data prime of so many bits needs."""
    return -(-TAG_BITS // (bits - 1))


class WordTags:
    """The elements of one update or aggregate, before pads, from its words in order.

    Parameters
    ----------
    moduli : tuple of int
        The data primes, of 2 bits or more.
    degree : int
        N, words a row.
    keys : sequence of bytes
        32 secret bytes for each element: those of the first prime, then those of the next.
    """

    def __init__(self, moduli: tuple[int, ...], degree: int, keys: Sequence[bytes]) -> None:
        self._moduli, self._degree = moduli, degree
        self._counts = tuple(element_count(modulus.bit_length()) for modulus in moduli)
        self.moduli = tuple(q for q, count in zip(moduli, self._counts, strict=True) for _ in range(count))
        self._samples = [_Samples(key, modulus) for key, modulus in zip(keys, self.moduli, strict=True)]
        self._beta = np.concatenate([sample.take(degree) for sample in self._samples])
        self._state = np.zeros(len(self.moduli), dtype=np.uint64)

    def add(self, words: NDArray[np.uint64]) -> None:
        """Take the words of whole polynomials, each a row a data prime, every word below its prime."""
        polynomials = words.size // (len(self._moduli) * self._degree)
        alpha = np.stack([sample.take(polynomials) for sample in self._samples], axis=1).reshape(-1)
        secagg_ext.word_macs(words, self._moduli, self._degree, self._counts, self._beta, alpha, self._state)

    def elements(self) -> tuple[int, ...]:
        """Return the elements of all words taken, one for each of `moduli`."""
        return tuple(self._state.tolist())


class _Samples:
    """Uniform words below a modulus: of the keystream's u64, the low bits that are below it, in their order."""

    def __init__(self, key: bytes, modulus: int) -> None:
        self._stream, self._offset, self._modulus = Keystream(key), 0, np.uint64(modulus)
        self._mask = np.uint64((1 << modulus.bit_length()) - 1)
        self._left = np.empty(0, dtype=np.uint64)

    def take(self, count: int) -> NDArray[np.uint64]:
        """Return the next `count` words."""
        while self._left.size < count:
            candidates = np.empty(max(count - self._left.size, _STEP), dtype=np.uint64)
            self._stream.read(self._offset, candidates.view(np.uint8))
            self._offset += candidates.nbytes
            candidates &= self._mask
            self._left = np.concatenate([self._left, candidates[candidates < self._modulus]])
        taken, self._left = self._left[:count], self._left[count:]
        return taken
